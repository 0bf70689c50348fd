"""The matcher: recall from the index, scores from the encoder, one answer; and the door for documents."""

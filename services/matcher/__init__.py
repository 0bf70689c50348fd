"""The matcher service: answers queries from the index and the encoder, and accepts documents."""

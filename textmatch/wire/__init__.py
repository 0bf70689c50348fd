"""Messages of `textmatch.v1` to and from the plain types of textmatch, in both directions."""

"""Messages of `textmatch.v1` to and from plain types. Only servicers and clients use messages otherwise."""

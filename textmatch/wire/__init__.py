"""Messages of `textmatch.v1` to and from plain types, in both directions. Nothing else builds or reads them
but servicers and clients, which fill in requests."""

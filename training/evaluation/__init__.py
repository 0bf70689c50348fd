"""Evaluates models on labelled pairs and on retrieval: `textmatch evaluate`."""

"""Qdrant as the index and the document store: collections, aliases, conditional writes, recall.

A collection holds the documents of one bi-encoder and is named for its model id; an alias points at the one
in use. A document's point has its embedding as the vector `dense`, its terms as the sparse vector `bm25` (not
in collections made before there was hybrid recall) and this payload:

    {"id", "text", "attributes", "version", "text_hash", "content_hash"}
"""

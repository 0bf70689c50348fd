"""Qdrant as the index and the document store: collections, aliases, conditional writes, searches.

A collection holds the documents of one bi-encoder and is named for its model id. An alias points at the
collection in use. A document is a point with its embedding as the vector `dense`, its terms as the sparse
vector `bm25` (missing in collections that are older than hybrid search) and this payload:

    {"id", "text", "attributes", "version", "text_hash", "content_hash"}
"""

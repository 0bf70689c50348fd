"""The ingest queue in Redis: Celery tasks that carry documents, and the state of those documents.

Accepted documents are marked pending and published as tasks. Workers take them, write them to the index and
clear the mark. Deletes add tombstones; documents that cannot be indexed go to the dead letters.
"""

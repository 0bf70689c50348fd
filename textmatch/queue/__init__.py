"""The ingest queue in Redis: Celery tasks that carry documents, and the state of documents on their way.

Accepted documents are marked pending and published as tasks. Workers take them, write them to the index and
clear the mark. Deletes leave tombstones; documents that can never be indexed go to the dead letters.
"""

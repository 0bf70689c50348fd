"""The ingest queue in Redis: Celery tasks that carry documents, and the state of those documents.

Accepted documents are marked as pending and published as tasks. Workers take the tasks, write the documents
to the index and clear the marks. Deletes add tombstones; documents that cannot be indexed go to the dead
letters.
"""

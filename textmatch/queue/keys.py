"""The keys in Redis. An id may contain any character; therefore it comes last in a key."""

from __future__ import annotations

QUEUE = "textmatch.ingest"

# Messages taken from the queue and not yet recorded as unacknowledged.
TAKEN = "textmatch:taken"
# Unacknowledged messages by delivery tag, and when each lease was last renewed: kombu's hash and sorted set.
UNACKED = "textmatch:unacked"
UNACKED_INDEX = "textmatch:unacked-index"

# Sorted set: document id -> time of acceptance in seconds.
PENDING = "textmatch:pending"
# Hash: document id -> highest accepted version.
PENDING_VERSIONS = "textmatch:pending-versions"

# Hash: document id, or a generated id for unreadable messages -> JSON.
DEAD_LETTERS = "textmatch:dead-letters"
# Hash: document id -> version of the document in the dead letters.
DEAD_LETTER_VERSIONS = "textmatch:dead-letter-versions"

# Sorted sets: filter as JSON -> version up to which matches are deleted, and -> when the entry expires.
FILTER_TOMBSTONES = "textmatch:filter-tombstones"
FILTER_TOMBSTONE_ENDS = "textmatch:filter-tombstone-ends"


def request_version(request_id: str) -> str:
    """String: the version that the first try of a request was given."""
    return f"textmatch:request-version:{request_id}"


def tombstone(document_id: str) -> str:
    """String: the version up to which the document is deleted."""
    return f"textmatch:tombstone:{document_id}"

"""The keys in Redis.

    keys = Keys("textmatch")
    keys.queue                                     ->  "textmatch.ingest"
    keys.collection("faq", "5f3a9c1e").pending     ->  "textmatch:faq:5f3a9c1e:pending"

An installation has one queue, and each collection a state of its own. The generation of a collection is part
of its keys: what was deleted and created again starts with an empty state.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LetterKeys:
    """Where dead letters are.

    Attributes:
        dead_letters: hash: document id, or a generated id for unreadable messages -> JSON.
        dead_letter_versions: hash: document id -> version of the document in the dead letters.
        dead_letter_times: sorted set: key in `dead_letters` -> when it failed, in seconds since 1970.
    """

    dead_letters: str
    dead_letter_versions: str
    dead_letter_times: str

    @classmethod
    def under(cls, prefix: str) -> LetterKeys:
        """The keys with a prefix."""
        names = ("dead-letters", "dead-letter-versions", "dead-letter-times")
        return cls(*(f"{prefix}:{name}" for name in names))


@dataclass(frozen=True)
class CollectionKeys:
    """The keys of one collection. An id may contain any character; therefore it comes last in a key."""

    prefix: str

    @property
    def pending(self) -> str:
        """Sorted set: document id -> time of acceptance in seconds."""
        return f"{self.prefix}:pending"

    @property
    def pending_versions(self) -> str:
        """Hash: document id -> highest accepted version."""
        return f"{self.prefix}:pending-versions"

    @property
    def watches(self) -> str:
        """Hash: document id -> since when no write of it was accepted (pending.py). It is small."""
        return f"{self.prefix}:watches"

    @property
    def letters(self) -> LetterKeys:
        """Documents that cannot be indexed."""
        return LetterKeys.under(self.prefix)

    @property
    def clock(self) -> str:
        """String: the last version that was issued (clock.py)."""
        return f"{self.prefix}:clock"

    @property
    def tombstones(self) -> str:
        """Sorted set: hash with tombstones -> when it expires."""
        return f"{self.prefix}:tombstones"

    @property
    def filter_tombstones(self) -> str:
        """Sorted set: filter and version as JSON -> when the delete was accepted, in microseconds."""
        return f"{self.prefix}:filter-tombstones"

    @property
    def filter_tombstone_ends(self) -> str:
        """Sorted set: filter and version as JSON -> when the entry expires."""
        return f"{self.prefix}:filter-tombstone-ends"

    @property
    def reindex_lease(self) -> str:
        """String: a random token of the process that changes the model now."""
        return f"{self.prefix}:reindex-lease"

    @property
    def roles(self) -> str:
        """String: the roles of the physical collections as JSON (textmatch/collection_roles.py)."""
        return f"{self.prefix}:roles"

    def request(self, request_id: str) -> str:
        """Hash: what the first try of a request was given (clock.py)."""
        return f"{self.prefix}:request:{request_id}"


@dataclass(frozen=True)
class Keys:
    """The keys of an installation. Several installations can share a database."""

    installation: str

    @property
    def queue(self) -> str:
        """List: the messages that wait."""
        return f"{self.installation}.ingest"

    @property
    def priority_queues(self) -> list[str]:
        """Lists into which Celery clients push tasks with a priority of 1 to 9, as kombu names them."""
        return [f"{self.queue}\x06\x16{priority}" for priority in range(1, 10)]

    @property
    def taken(self) -> str:
        """List: messages taken from the queue and not yet recorded as unacknowledged."""
        return f"{self.installation}:taken"

    @property
    def unacked(self) -> str:
        """Hash of kombu: delivery tag -> unacknowledged message."""
        return f"{self.installation}:unacked"

    @property
    def unacked_index(self) -> str:
        """Sorted set of kombu: delivery tag -> when the lease was last renewed."""
        return f"{self.installation}:unacked-index"

    @property
    def id(self) -> str:
        """String: a random id of the installation."""
        return f"{self.installation}:id"

    @property
    def collections(self) -> str:
        """Hash: name of a collection -> its settings as JSON."""
        return f"{self.installation}:collections"

    @property
    def troubled_workers(self) -> str:
        """Set: names of workers that have, or had, a paused collection."""
        return f"{self.installation}:troubled-workers"

    def worker_problems(self, worker: str) -> str:
        """String: the paused collections of a worker as JSON; expires when the worker is gone."""
        return f"{self.installation}:worker-problems:{worker}"

    @property
    def letters(self) -> LetterKeys:
        """Unreadable messages, which belong to no collection."""
        return LetterKeys.under(self.installation)

    def collection(self, name: str, generation: str) -> CollectionKeys:
        """The keys of a collection."""
        return CollectionKeys(f"{self.installation}:{name}:{generation}")

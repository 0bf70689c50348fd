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
    """

    dead_letters: str
    dead_letter_versions: str

    @classmethod
    def under(cls, prefix: str) -> LetterKeys:
        """The keys with a prefix."""
        return cls(f"{prefix}:dead-letters", f"{prefix}:dead-letter-versions")


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
    def letters(self) -> LetterKeys:
        """Documents that cannot be indexed."""
        return LetterKeys.under(self.prefix)

    @property
    def filter_tombstones(self) -> str:
        """Sorted set: filter as JSON -> version up to which matches are deleted."""
        return f"{self.prefix}:filter-tombstones"

    @property
    def filter_tombstone_ends(self) -> str:
        """Sorted set: filter as JSON -> when the entry expires."""
        return f"{self.prefix}:filter-tombstone-ends"

    def request_version(self, request_id: str) -> str:
        """String: the version that the first try of a request was given."""
        return f"{self.prefix}:request-version:{request_id}"

    def tombstone(self, document_id: str) -> str:
        """String: the version up to which the document is deleted."""
        return f"{self.prefix}:tombstone:{document_id}"


@dataclass(frozen=True)
class Keys:
    """The keys of an installation. Several installations can share a database."""

    installation: str

    @property
    def queue(self) -> str:
        """List: the messages that wait."""
        return f"{self.installation}.ingest"

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

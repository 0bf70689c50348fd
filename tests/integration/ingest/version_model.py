"""The rules of versions and tombstones, applied to events one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from textmatch.documents import Document

BAD_TEXT = "bad"


class Moment(Enum):
    """Between which steps of a worker something else happens."""

    BEFORE_READING = auto()
    BETWEEN_READING_AND_WRITE = auto()
    AFTER_WRITE = auto()


class CrashMoment(Enum):
    """Before which step a worker dies. Of a document with several passages, the others are written then."""

    BEFORE_COMMIT = auto()
    AFTER_WRITE = auto()


@dataclass(frozen=True)
class Race:
    """A concurrent change of the same document: a delete, or a write if there is a text."""

    moment: Moment
    version: int
    text: str | None


@dataclass
class Model:
    """What the rules say: documents in the index, tombstones, dead letters and pending versions, by id."""

    stored: dict[str, Document] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    letters: dict[str, Document] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    refuses_bad_text: bool = True

    def delete(self, document_id: str, version: int) -> None:
        """Everything up to the version goes."""
        self._bury(document_id, version)
        self._forget(self.stored, document_id, version)
        self._settle(document_id, self.tombstones[document_id])

    def accept(self, document: Document) -> None:
        """A write or a delete is queued. What is stored stays until a worker takes it."""
        self.pending[document.id] = max(document.version, self.pending.get(document.id, 0))
        if document.deleted:
            self._bury(document.id, document.version)

    def version(self, document_id: str) -> int:
        """The highest accepted version, stored or queued; 0 if there is none, or it is deleted."""
        stored = self.stored[document_id].version if document_id in self.stored else 0
        version = max(stored, self.pending.get(document_id, 0))
        return version if version > self.tombstones.get(document_id, 0) else 0

    def deliver(self, document: Document, race: Race | None, crash: CrashMoment | None = None) -> None:
        """A worker takes the document."""
        if document.deleted:
            # It applies all deletes of the document.
            self._bury(document.id, document.version)
            self.delete(document.id, self.tombstones[document.id])
            return
        is_buried_at_first = self._is_buried(document)
        self._race(document, race, Moment.BEFORE_READING)
        is_refused = self._is_refused(document) and not is_buried_at_first
        # What is stored already is sent again.
        is_sent = not self._is_stale(document) or self.stored[document.id] == document
        if is_sent and not (is_buried_at_first or is_refused):
            self._race(document, race, Moment.BETWEEN_READING_AND_WRITE)
            if crash is CrashMoment.BEFORE_COMMIT:
                return
            if not self._is_stale(document):
                self.stored[document.id] = document
        self._race(document, race, Moment.AFTER_WRITE)
        if crash is CrashMoment.AFTER_WRITE:
            return
        if self._is_buried(document):
            self._forget(self.stored, document.id, self.tombstones[document.id])
        if is_refused and not self._is_buried(document):
            self._keep_letter(document)
        else:
            self._forget(self.letters, document.id, document.version)
        self._settle(document.id, document.version)

    def _bury(self, document_id: str, version: int) -> None:
        self.tombstones[document_id] = max(version, self.tombstones.get(document_id, 0))
        self._forget(self.letters, document_id, version)

    def _settle(self, document_id: str, version: int) -> None:
        if self.pending.get(document_id, version + 1) <= version:
            del self.pending[document_id]

    def _race(self, document: Document, race: Race | None, moment: Moment) -> None:
        if race is None or race.moment is not moment:
            return
        if race.text is None:
            self.delete(document.id, race.version)
        else:
            self.deliver(raced_document(document.id, race.version, race.text), None)

    def _is_buried(self, document: Document) -> bool:
        return self.tombstones.get(document.id, 0) >= document.version

    def _is_stale(self, document: Document) -> bool:
        return document.id in self.stored and self.stored[document.id].version >= document.version

    def _is_refused(self, document: Document) -> bool:
        """Only what must be encoded can be refused."""
        known = self.stored.get(document.id)
        is_encoded = not self._is_stale(document) and (known is None or known.text != document.text)
        return is_encoded and self.refuses_bad_text and document.text == BAD_TEXT

    def _keep_letter(self, document: Document) -> None:
        known = self.letters.get(document.id)
        if known is None or known.version <= document.version:
            self.letters[document.id] = document

    @staticmethod
    def _forget(documents: dict[str, Document], document_id: str, version: int) -> None:
        if document_id in documents and documents[document_id].version <= version:
            del documents[document_id]


def raced_document(document_id: str, version: int, text: str) -> Document:
    """What another worker writes."""
    return Document(document_id, text, {"raced": True}, version)

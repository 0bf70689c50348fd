"""Making one collection hold what another one holds.

The collection in use is the *source*; the one being built, or the one kept for going back, is its *target*.
Three kinds of actors change both at the same time: workers write, deleters delete, and `textmatch reindex`
walks through the source. These rules keep the target equal, whatever overtakes what and whoever dies:

1. *Source first.* Workers and deleters change the source, and then the target. So a version in a target has
   been in its source before; if the source, read after the target, has no such version, then it was deleted.
2. *Workers and the walker copy alike*: read the source, write what the target lacks (Qdrant itself refuses
   what is not newer than it has), read the source again, and remove from the target what the source has lost
   meanwhile, sparing newer versions. A delete that comes between the two readings is seen by the second one;
   one that comes after the second reading in the source comes later still in the target (rule 1).
3. *Asked again before it is acknowledged.* Workers and deleters read the aliases when everything they did is
   durable. If they are not what they were, all is done once more for those that hold now. The walk starts
   after the alias of the target is set. So of each change one holds: it was made in the source before the
   alias was set, and the walk finds its outcome; or the aliases, asked again, had the target in them, and
   it was made there too. The same covers a switch between two readings.
4. *A target is complete or has no role.* A worker that cannot write to a target any more takes its role away
   before it acknowledges (workers/mirrors.py); nobody can then put it to use until another walk has
   completed it.

A worker or a walker that dies between writing and its second reading has acknowledged nothing and noted
nothing: the message comes again, and the next walk looks at every document of both collections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from textmatch.encoder_client import EncoderClient
from textmatch.index.points import CollectionPoints
from textmatch.index.store import Index
from textmatch.queue.dead_letters import DeadLetter
from textmatch.reindexing.embedding import embed_documents


@dataclass
class Copied:
    """What a copy changed in the target, and what its model cannot embed, by document id."""

    written: int = 0
    removed: int = 0
    refused: dict[str, DeadLetter] = field(default_factory=dict)


class Copier:
    """Copies by the rules above; every method may be repeated."""

    def __init__(self, index: Index, encoder: EncoderClient, encode_timeout_seconds: float) -> None:
        self._index = index
        self._encoder = encoder
        self._encode_timeout_seconds = encode_timeout_seconds

    async def copy(self, ids: Sequence[str], *, source: str, target: str) -> Copied:
        """Make the target hold what the source holds of these documents, at most a few hundred.

        Raises:
            ModelMismatch: the model of the target is not served.
            CollectionGone: one of the two is.
            TextMatchError: it must be tried again.
        """
        points = self._index.points(target)
        wanted = await self._index.points(source).fetch(ids)
        held = await points.fetch(ids, with_embeddings=True)
        missing = [
            found.document
            for document_id, found in wanted.items()
            if document_id not in held or held[document_id].document.version < found.document.version
        ]
        embedded = await embed_documents(
            missing, held, self._encoder, model=target, timeout_seconds=self._encode_timeout_seconds
        )
        if embedded.documents:
            await self._index.upsert(embedded.documents, embedded.embeddings, model_id=target)
        refused = {letter.key: letter for letter in embedded.refused}

        versions = {document_id: found.document.version for document_id, found in held.items()}
        versions |= {document.id: document.version for document in embedded.documents}
        removed = await self.remove_lost(versions, source=source, target=target)
        # An older version of a document that cannot be embedded is not what the source holds.
        outdated = {one.key: one.document.version for one in refused.values() if one.document}
        removed += await points.delete(outdated)
        return Copied(len(embedded.documents), removed, refused)

    async def remove_lost(self, versions: Mapping[str, int], *, source: str, target: str) -> int:
        """Remove from the target what the source holds no more.

        Args:
            versions: what the target held, read before this call.

        Returns:
            How many documents went.
        """
        left = await self._index.points(source).versions(versions)
        lost = {one: version for one, version in versions.items() if left.get(one, 0) < version}
        return await self._index.points(target).delete(lost)


async def missing_ids(page: Mapping[str, int], target: CollectionPoints) -> list[str]:
    """Those of the source's versions that the target lacks or has older."""
    held = await target.versions(page)
    return [document_id for document_id, version in page.items() if held.get(document_id, 0) < version]

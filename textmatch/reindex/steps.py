"""The steps of a migration to another model: start, compare, switch, roll back, drop.

Each step checks that it is possible now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from textmatch.collection_roles import CollectionRole, Roles
from textmatch.encoder_client import EncoderClient
from textmatch.errors import ModelNotFound
from textmatch.index.index import Index
from textmatch.reindex.sync import RETRY, Migration, ReindexRefused, SyncProgress
from textmatch.score_fusion import FUSION_NOTE
from textmatch.types import ModelInfo
from textmatch.vectors import Embeddings

_QUERIES_PER_CALL = 64
_GET_MODELS_SECONDS = 10.0


async def start(index: Index, encoder: EncoderClient, model: str) -> Migration:
    """Create the collection of another model as the next one, or continue to build it.

    Args:
        model: name or id of a bi-encoder that the encoder serves, in addition to the one in use.

    Raises:
        ModelNotFound: the model is not served.
        ReindexRefused: there is nothing to reindex, or another migration is not finished.
    """
    new = await _served(encoder, model)
    roles = await RETRY.call(index.collections.refresh_roles)
    _check_start(roles, new.model_id)
    await _served(encoder, roles.in_use)
    await RETRY.call(index.roles.start, new.model_id, new.dimension)
    return Migration(roles.in_use, new.model_id)


async def switch(index: Index, migration: Migration) -> None:
    """Use the target and keep the source. May be repeated.

    Raises:
        ReindexRefused: the target is no longer being built.
    """
    if await index.roles.promote(CollectionRole.NEXT, in_use=migration.source):
        return
    # The answer to a first attempt may have been lost.
    if (await index.collections.refresh_roles()).in_use != migration.target:
        raise ReindexRefused(f"{migration.target} is no longer being built; run the command again to see why")


async def roll_back(index: Index, encoder: EncoderClient) -> Migration:
    """Use the previous collection again and keep the one in use as the previous one.

    Raises:
        ReindexRefused: there is no complete previous collection.
        ModelNotFound: its model is not served.
    """
    roles = await RETRY.call(index.collections.refresh_roles)
    if roles.abandoned:
        raise ReindexRefused(
            f"{roles.abandoned} lacks writes, because its model was not served to the workers;"
            f" complete it first with: textmatch reindex --model {roles.abandoned}"
        )
    if not roles.previous:
        raise ReindexRefused("no previous collection is kept, so a rollback is not possible")
    await _served(encoder, roles.previous)
    if not await index.roles.promote(CollectionRole.PREVIOUS, in_use=roles.in_use):
        raise ReindexRefused(f"{roles.previous} is no longer kept: its role was changed")
    return Migration(roles.in_use, roles.previous)


async def drop_old(index: Index) -> str:
    """Delete the collection that is kept for a rollback; returns its name.

    Raises:
        ReindexRefused: there is none.
    """
    roles = await RETRY.call(index.collections.refresh_roles)
    return await _drop(index, roles.previous or roles.abandoned, "no previous collection is kept")


async def cancel(index: Index) -> str:
    """Delete the collection that is being built; returns its name.

    Raises:
        ReindexRefused: there is none.
    """
    roles = await RETRY.call(index.collections.refresh_roles)
    return await _drop(index, roles.next or roles.abandoned, "no collection is being built")


async def _drop(index: Index, collection: str, nothing: str) -> str:
    if not collection:
        raise ReindexRefused(f"{nothing}; there is nothing to delete")
    await index.roles.drop(collection)
    return collection


async def _served(encoder: EncoderClient, model: str) -> ModelInfo:
    served = await RETRY.call(encoder.bi_encoders, timeout_seconds=_GET_MODELS_SECONDS)
    for info in served:
        if model in (info.model_id, info.name):
            return info
    known = ", ".join(info.model_id for info in served) or "none"
    raise ModelNotFound(model, f'no bi-encoder "{model}" is served; served: {known}')


def _check_start(roles: Roles, model_id: str) -> None:
    if not roles.in_use:
        raise ReindexRefused("there is no index yet; the first ingested document creates it")
    if roles.in_use == model_id:
        raise ReindexRefused(f"{model_id} is in use already")
    if roles.previous == model_id:
        raise ReindexRefused(
            f"{model_id} is the previous collection; use it again with: textmatch reindex --rollback"
        )
    if roles.previous:
        raise ReindexRefused(
            f"{roles.previous} is still kept for a rollback;"
            " delete it first with: textmatch reindex --drop-old"
        )
    unfinished = roles.next or roles.abandoned
    if unfinished and unfinished != model_id:
        raise ReindexRefused(
            f"{unfinished} is not finished; continue with: textmatch reindex --model {unfinished},"
            " or delete it with: textmatch reindex --cancel"
        )


class TunedWeights(StrEnum):
    """Which tuned weights apply after a migration."""

    NONE = "none"  # neither collection had any
    TAKEN_OVER = "taken over"  # those of the source
    OWN = "own"  # the target had some already
    LEFT_BEHIND = "left behind"  # those of the source do not fit; the server's default weights apply


async def take_over_weights(index: Index, migration: Migration) -> TunedWeights:
    """Copy the source's weights to a target that has none, if both models have the same name.

    Cosines of models with different names are not comparable. May be repeated.
    """
    tuned = (await index.collections.info(migration.source)).notes.get(FUSION_NOTE)
    if (await index.collections.info(migration.target)).notes.get(FUSION_NOTE) is not None:
        return TunedWeights.OWN
    if tuned is None:
        return TunedWeights.NONE
    # A model id is the model's name, a hyphen and the hash of its files.
    if migration.source.rpartition("-")[0] != migration.target.rpartition("-")[0]:
        return TunedWeights.LEFT_BEHIND
    await index.collections.note(migration.target, {FUSION_NOTE: tuned})
    return TunedWeights.TAKEN_OVER


@dataclass(frozen=True)
class ComparedQuery:
    """`overlap` is the share, 0..1, of the source's answers that the target also returns."""

    text: str
    overlap: float
    same_first: bool


@dataclass(frozen=True)
class Comparison:
    """All queries, compared by their `top_k` nearest documents in both collections."""

    top_k: int
    queries: list[ComparedQuery]

    @property
    def overlap(self) -> float:
        """The mean of all queries; 1 if there are none."""
        return fmean(query.overlap for query in self.queries) if self.queries else 1.0

    @property
    def same_first(self) -> float:
        """The share of queries whose best answer stays the best; 1 if there are none."""
        return fmean(query.same_first for query in self.queries) if self.queries else 1.0


async def compare(
    index: Index,
    encoder: EncoderClient,
    migration: Migration,
    texts: Sequence[str],
    top_k: int,
    timeout_seconds: float,
    progress: SyncProgress,
) -> Comparison:
    """Query both collections, each with the embeddings of its own model, in the bulk lane.

    Queries without an answer in the source are left out.

    Raises:
        ModelMismatch: one of the models is not served.
        TextMatchError: retrying does not help.
    """
    progress.stage("comparing", len(texts))
    compared: list[ComparedQuery] = []
    for start in range(0, len(texts), _QUERIES_PER_CALL):
        some = texts[start : start + _QUERIES_PER_CALL]
        old_rows = await _embed(encoder, some, migration.source, timeout_seconds)
        new_rows = await _embed(encoder, some, migration.target, timeout_seconds)
        for text, old_row, new_row in zip(some, old_rows, new_rows, strict=True):
            old = await RETRY.call(index.points(migration.source).nearest, old_row, top_k)
            new = await RETRY.call(index.points(migration.target).nearest, new_row, top_k)
            if old:
                overlap = len(set(old) & set(new)) / len(old)
                compared.append(ComparedQuery(text, overlap, same_first=old[:1] == new[:1]))
            progress.advance(1)
    return Comparison(top_k, compared)


async def _embed(
    encoder: EncoderClient, texts: Sequence[str], model: str, timeout_seconds: float
) -> Embeddings:
    encoded = await RETRY.call(
        encoder.encode, texts, is_query=True, is_bulk=True, timeout_seconds=timeout_seconds, model=model
    )
    return encoded.embeddings

"""The steps of changing the model, each allowed only where it makes sense.

What becomes of weights that were tuned for a collection when another takes its place.
"""

from __future__ import annotations

from enum import StrEnum

from textmatch.encoder_client import BiEncoderInfo, EncoderClient
from textmatch.errors import ModelNotFound
from textmatch.index.collections import Role, Roles
from textmatch.index.index import Index
from textmatch.reindex.retry import patiently
from textmatch.reindex.sync import Change, ReindexRefused
from textmatch.score_fusion import WEIGHTS_NOTE

_GET_MODELS_SECONDS = 10.0


async def start(index: Index, encoder: EncoderClient, model: str) -> Change:
    """Make the collection of a model the next one, or go on with it.

    Args:
        model: name or id of a bi-encoder that the encoder serves beside the one in use.

    Raises:
        ModelNotFound: it is not served.
        ReindexRefused: there is nothing to index anew, or another change is not finished.
    """
    new = await _served(encoder, model)
    roles = await patiently(index.refresh_roles)
    _check_start(roles, new.model_id)
    await _served(encoder, roles.in_use)
    if roles.abandoned:
        await index.succession.resume()
    else:
        await index.succession.start(new.model_id, new.dimension)
    return Change(roles.in_use, new.model_id)


async def switch(index: Index, change: Change) -> None:
    """Put the new collection to use and keep the old one.

    Raises:
        ReindexRefused: it has been abandoned meanwhile.
    """
    if await index.succession.promote(Role.NEXT, in_use=change.source):
        return
    # Or the answer to a first try got lost.
    if (await index.refresh_roles()).in_use != change.target:
        raise ReindexRefused(f"{change.target} is not being built any more; start again to see why")


async def roll_back(index: Index, encoder: EncoderClient) -> Change:
    """Put the previous collection to use again and keep the one in use as the previous one.

    Raises:
        ReindexRefused: there is no previous collection.
        ModelNotFound: its model is not served.
    """
    roles = await patiently(index.refresh_roles)
    if roles.abandoned:
        raise ReindexRefused(
            f"{roles.abandoned} lacks writes, because its model was not served to the workers;"
            f" complete it first with: textmatch reindex --model {roles.abandoned}"
        )
    if not roles.previous:
        raise ReindexRefused("no previous collection is kept, so that there is nothing to go back to")
    await _served(encoder, roles.previous)
    if not await index.succession.promote(Role.PREVIOUS, in_use=roles.in_use):
        raise ReindexRefused(f"{roles.previous} is not kept any more; somebody has changed that")
    return Change(roles.in_use, roles.previous)


async def drop_old(index: Index) -> str:
    """Delete the collection that is kept for going back; returns its name.

    Raises:
        ReindexRefused: there is none.
    """
    roles = await patiently(index.refresh_roles)
    return await _drop(index, roles.previous or roles.abandoned, "no previous collection is kept")


async def cancel(index: Index) -> str:
    """Delete the collection that is being built; returns its name.

    Raises:
        ReindexRefused: there is none.
    """
    roles = await patiently(index.refresh_roles)
    return await _drop(index, roles.next or roles.abandoned, "no collection is being built")


async def _drop(index: Index, collection: str, nothing: str) -> str:
    if not collection:
        raise ReindexRefused(f"{nothing}, so that there is nothing to delete")
    await index.succession.drop(collection)
    return collection


async def _served(encoder: EncoderClient, model: str) -> BiEncoderInfo:
    served = await patiently(encoder.bi_encoders, timeout_seconds=_GET_MODELS_SECONDS)
    for info in served:
        if model in (info.model_id, info.name):
            return info
    known = ", ".join(info.model_id for info in served) or "none"
    raise ModelNotFound(model, f'no bi-encoder "{model}" is served; served: {known}')


def _check_start(roles: Roles, model_id: str) -> None:
    if not roles.in_use:
        raise ReindexRefused("there is no index yet; the first document that is ingested creates it")
    if roles.in_use == model_id:
        raise ReindexRefused(f"{model_id} is in use already")
    if roles.previous == model_id:
        raise ReindexRefused(
            f"{model_id} is kept from before; go back to it with: textmatch reindex --rollback"
        )
    if roles.previous:
        raise ReindexRefused(
            f"{roles.previous} is still kept for going back;"
            " delete it first with: textmatch reindex --drop-old"
        )
    unfinished = roles.next or roles.abandoned
    if unfinished and unfinished != model_id:
        raise ReindexRefused(
            f"{unfinished} is not finished; go on with: textmatch reindex --model {unfinished},"
            " or delete it with: textmatch reindex --cancel"
        )


class TunedWeights(StrEnum):
    """Whether tuned weights hold after the change, and which."""

    NONE = "none"  # neither collection had any
    TAKEN_OVER = "taken over"  # those of the old collection
    OWN = "own"  # the new collection had some already
    LEFT_BEHIND = "left behind"  # the old ones would not fit; the server's hold


async def take_over_weights(index: Index, change: Change) -> TunedWeights:
    """Give the target the source's weights, if it has none and its model has the name of the source's.

    Cosines of models of other names mean something else. May be repeated.
    """
    tuned = (await index.traits(change.source)).notes.get(WEIGHTS_NOTE)
    if (await index.traits(change.target)).notes.get(WEIGHTS_NOTE) is not None:
        return TunedWeights.OWN
    if tuned is None:
        return TunedWeights.NONE
    if _name(change.source) != _name(change.target):
        return TunedWeights.LEFT_BEHIND
    await index.note(change.target, {WEIGHTS_NOTE: tuned})
    return TunedWeights.TAKEN_OVER


def _name(model_id: str) -> str:
    """Without the hash behind it."""
    return model_id.rpartition("-")[0]

"""What becomes of weights that were tuned for a collection when another takes its place."""

from __future__ import annotations

from enum import StrEnum

from textmatch.combination import WEIGHTS_NOTE
from textmatch.index.store import Index
from textmatch.reindexing.walking import Change


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

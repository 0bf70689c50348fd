"""Many texts in rows of one width, so that a forward pass computes next to no padding.

Texts stand one after another in a row. Positions start again with each text, and attention stays within a
text because only places with the same segment number see each other. Padding at the end of a row is a segment
of its own.

Rows have one of a few widths, so that an engine which prepares itself for each shape meets few shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textmatch.models.tokens import TokenizedText

# Short rows keep single queries quick; 128 is where attention and padding together cost least for many texts.
ROW_WIDTHS = (16, 32, 64, 128, 256, 512)
_FULL_ROW = 128

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PackedRows:
    """Rows of one width. Arrays are (rows, width) int64 but for those of the texts, which are (count,)."""

    input_ids: Ids
    position_ids: Ids  # from 0 in each text
    type_ids: Ids
    segments: Ids  # 0 is padding, 1 the first text of a row
    # Which text of the batch stands where, as a place in the flattened rows.
    texts: Ids
    starts: Ids
    lengths: Ids

    @property
    def owners(self) -> Ids:
        """(rows * width,): which of `texts` each place belongs to; padding belongs to one more."""
        numbers = self.segments.reshape(-1) - 1
        return np.where(numbers < 0, len(self.texts), numbers)


def pack(batch: Sequence[TokenizedText], pad_id: int) -> list[PackedRows]:
    """All texts of a batch in few rows, by first fit: one PackedRows for each width that is needed.

    Long texts stand in wide rows, and short ones fill what is left there.
    """
    token_counts = np.array([text.token_count for text in batch], dtype=np.int64)
    short = np.flatnonzero(token_counts <= _FULL_ROW)
    longer = np.flatnonzero(token_counts > _FULL_ROW)
    widths = np.array([_width(int(token_counts[one])) for one in longer], dtype=np.int64)
    packed = []
    for width in np.unique(widths).tolist():
        own = longer[widths == width]
        row_count = int(_first_fit(token_counts[own], width)[:, 0].max()) + 1
        candidates = np.concatenate([own, short])
        places = _first_fit(token_counts[candidates], width, row_limit=row_count)
        has_place = places[:, 0] >= 0
        packed.append(_fill(batch, candidates[has_place], places[has_place], width, pad_id))
        short = candidates[~has_place]
    if short.size:
        width = min(_FULL_ROW, _width(int(token_counts[short].sum())))
        packed.append(_fill(batch, short, _first_fit(token_counts[short], width), width, pad_id))
    return packed


def _width(token_count: int) -> int:
    """The smallest width that holds this many tokens; beyond the largest, the next multiple of it."""
    largest = ROW_WIDTHS[-1]
    return next((width for width in ROW_WIDTHS if width >= token_count), -(-token_count // largest) * largest)


def _fill(batch: Sequence[TokenizedText], chosen: Ids, places: Ids, width: int, pad_id: int) -> PackedRows:
    row_count = int(places[:, 0].max()) + 1
    rows = PackedRows(
        input_ids=np.full((row_count, width), pad_id, dtype=np.int64),
        position_ids=np.zeros((row_count, width), dtype=np.int64),
        type_ids=np.zeros((row_count, width), dtype=np.int64),
        segments=np.zeros((row_count, width), dtype=np.int64),
        texts=chosen,
        starts=places[:, 0] * width + places[:, 1],
        lengths=np.array([batch[text].token_count for text in chosen], dtype=np.int64),
    )
    positions = np.arange(width, dtype=np.int64)
    for number, (row, column) in enumerate(places.tolist()):
        text = batch[chosen[number]]
        span = slice(column, column + text.token_count)
        rows.input_ids[row, span] = text.ids
        rows.position_ids[row, span] = positions[: text.token_count]
        rows.segments[row, span] = number + 1
        if text.type_ids is not None:
            rows.type_ids[row, span] = text.type_ids
    return rows


def _first_fit(token_counts: Ids, width: int, row_limit: int | None = None) -> Ids:
    """(count, 2): row and column of each text, longest placed first; -1 where the limit leaves no room."""
    places = np.full((len(token_counts), 2), -1, dtype=np.int64)
    used: list[int] = []
    # Rows before this one are too full for any text that is still to come.
    first_open = 0
    shortest = int(token_counts.min())
    for number in np.argsort(-token_counts, kind="stable").tolist():
        length = int(token_counts[number])
        row = next((row for row in range(first_open, len(used)) if used[row] + length <= width), len(used))
        if row == len(used):
            if row == row_limit:
                continue
            used.append(0)
        places[number] = row, used[row]
        used[row] += length
        while first_open < len(used) and used[first_open] + shortest > width:
            first_open += 1
    return places

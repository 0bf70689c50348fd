"""Requests that are fit to be worked on; all that is wrong with one is told at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from textmatch import vectors
from textmatch.documents import MAX_TEXT_BYTES, check_item_count, check_texts, text_violation
from textmatch.errors import InvalidInput, Violation
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.vectors import Embeddings

EnumValue = TypeVar("EnumValue", bound=int)

# Of a message around its texts: field tags, lengths, ids.
_OVERHEAD_BYTES = 1024 * 1024
_OVERHEAD_BYTES_PER_TEXT = 16
_LARGEST_GRPC_LIMIT_BYTES = 2**31 - 1


@dataclass(frozen=True)
class ScoreInput:
    """What to compare: `firsts` is one query for all, or as many texts as `seconds`.

    `embeddings` (bytes as on the wire) may stand for the second texts. The names are what the caller calls
    each text and pair.
    """

    firsts: Sequence[str]
    seconds: Sequence[str]
    embeddings: bytes
    name_first: Callable[[int], str]
    name_second: Callable[[int], str]
    name_pair: Callable[[int], str]


def max_message_bytes(max_texts: int) -> int:
    """The largest message that keeps the limits: a call with as many pairs as there may be."""
    needed = 2 * max_texts * (MAX_TEXT_BYTES + _OVERHEAD_BYTES_PER_TEXT) + _OVERHEAD_BYTES
    return min(needed, _LARGEST_GRPC_LIMIT_BYTES)


def check_encode(request: pb.EncodeRequest, max_texts: int) -> None:
    """Check what can be checked without a model.

    Raises:
        InvalidInput: naming the bad fields.
    """
    check_enum("role", request.role, pb.Role.values())
    check_enum("priority", request.priority, pb.Priority.values())
    check_texts("texts", request.texts, max_texts)


def check_dimension(request: pb.EncodeRequest, model_dimension: int) -> int:
    """How many components are wanted.

    Raises:
        InvalidInput: more than the model has, or none.
    """
    if not request.HasField("dimension"):
        return model_dimension
    if not 1 <= request.dimension <= model_dimension:
        raise InvalidInput.of_field("dimension", f"is {request.dimension}; it must be 1 to {model_dimension}")
    return request.dimension


def score_input(request: pb.ScoreRequest, max_texts: int) -> ScoreInput:
    """What a request wants to have compared.

    Raises:
        InvalidInput: naming the bad fields, texts or pairs.
    """
    check_enum("scorer", request.scorer, pb.Scorer.values())
    check_enum("priority", request.priority, pb.Priority.values())
    given = [name for name in ("texts", "pairs", "embeddings") if getattr(request, name)]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InvalidInput.of_field(
            "texts", f"exactly one of texts, pairs and embeddings must be given, not {found}"
        )
    if request.pairs:
        return _pairs_input(request, max_texts)
    return _query_input(request, max_texts)


def stored_embeddings(block: bytes, dimension: int, max_texts: int) -> Embeddings:
    """(count, dimension) from the wire, rows of length 1.

    Raises:
        InvalidInput: they are of another dimension, too many, or not finite.
    """
    try:
        embeddings = vectors.unpack(block, dimension)
    except ValueError as error:
        raise InvalidInput.of_field("embeddings", str(error)) from error
    check_item_count("embeddings", len(embeddings), max_texts)
    if not np.isfinite(embeddings).all():
        raise InvalidInput.of_field("embeddings", "hold numbers that are not finite")
    return vectors.normalise(embeddings)


def check_enum(field: str, value: EnumValue, known: Sequence[EnumValue]) -> None:
    """Enums of proto3 are open: a newer client may send a value that this server does not know.

    Raises:
        InvalidInput: the value is not known.
    """
    if value not in known:
        raise InvalidInput.of_field(field, f"has the unknown value {value}")


def _query_input(request: pb.ScoreRequest, max_texts: int) -> ScoreInput:
    if request.texts:
        check_item_count("texts", len(request.texts), max_texts)
    checks = [text_violation("query", request.query)]
    checks += [text_violation(f"texts[{position}]", text) for position, text in enumerate(request.texts)]
    _raise_violations(checks)
    return ScoreInput(
        firsts=[request.query],
        seconds=request.texts,
        embeddings=request.embeddings,
        name_first=lambda _: "query",
        name_second="texts[{}]".format,
        name_pair="texts[{}]".format,
    )


def _pairs_input(request: pb.ScoreRequest, max_texts: int) -> ScoreInput:
    if request.query:
        raise InvalidInput.of_field("query", "is not used with pairs; leave it empty")
    check_item_count("pairs", len(request.pairs), max_texts)
    checks = []
    for position, pair in enumerate(request.pairs):
        checks.append(text_violation(f"pairs[{position}].first", pair.first))
        checks.append(text_violation(f"pairs[{position}].second", pair.second))
    _raise_violations(checks)
    return ScoreInput(
        firsts=[pair.first for pair in request.pairs],
        seconds=[pair.second for pair in request.pairs],
        embeddings=b"",
        name_first="pairs[{}].first".format,
        name_second="pairs[{}].second".format,
        name_pair="pairs[{}]".format,
    )


def _raise_violations(checks: Sequence[Violation | None]) -> None:
    violations = [violation for violation in checks if violation is not None]
    if violations:
        raise InvalidInput(violations)

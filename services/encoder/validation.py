"""Checks of the fields of requests. An error names all bad items at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from textmatch import vectors
from textmatch.documents import MAX_TEXT_BYTES, check_item_count, check_texts, text_violation
from textmatch.errors import InvalidInput
from textmatch.models.fast_tokenizer import Pair
from textmatch.runtime.request_limits import RequestLimits, raw_fields
from textmatch.types import Truncation
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.vectors import Embeddings
from textmatch.wire.encoding import TRUNCATIONS

EnumValue = TypeVar("EnumValue", bound=int)

_TRUNCATIONS = {value: truncation for truncation, value in TRUNCATIONS.items()}

# The size of a message in addition to its texts: field tags, lengths, ids.
_OVERHEAD_BYTES = 1024 * 1024
_OVERHEAD_BYTES_PER_TEXT = 16
_LARGEST_GRPC_LIMIT_BYTES = 2**31 - 1
# Fewer texts are parsed and counted, so that the error says how many there are.
_MIN_PARSED_TEXTS = 10_000


@dataclass(frozen=True)
class EncodeInput:
    """The texts to embed, and the form of their embeddings."""

    texts: Sequence[str]
    is_query: bool
    # Components that are kept, the first ones; None: all.
    dimension: int | None
    # Whether rows get length 1; otherwise they are as long as the model makes them.
    normalize: bool
    truncation: Truncation | None

    def shaped(self, rows: Embeddings) -> Embeddings:
        """The model's outputs, (count, all components), in the wanted form: (count, dimension)."""
        kept = rows[:, : self.dimension]
        return vectors.normalise(kept) if self.normalize else kept


@dataclass(frozen=True)
class ScoreInput:
    """The texts to compare: `firsts` is one query for all of `seconds`, or one text for each.

    `seconds` is empty if the query is compared with embeddings. The functions return the names of texts and
    pairs in the caller's request.
    """

    firsts: Sequence[str]
    seconds: Sequence[str]
    name_first: Callable[[int], str]
    name_second: Callable[[int], str]
    name_pair: Callable[[int], str]
    truncation: Truncation | None = None


def max_message_bytes(max_texts: int) -> int:
    """The size limit of gRPC messages: room for as many pairs of the largest texts as a call may have."""
    needed = 2 * max_texts * (MAX_TEXT_BYTES + _OVERHEAD_BYTES_PER_TEXT) + _OVERHEAD_BYTES
    return min(needed, _LARGEST_GRPC_LIMIT_BYTES)


def method_limits(max_texts: int) -> dict[str, RequestLimits]:
    """Limits of requests by method, checked before they are parsed: an empty text takes two bytes there, and
    many in memory.
    """
    texts = RequestLimits(max_message_bytes(max_texts), max_fields=max(_MIN_PARSED_TEXTS, 2 * max_texts))

    def parse_of_stream(data: bytes) -> pb.EncodeStreamRequest:
        for one in raw_fields(data, max_fields=100):
            texts.check(data[one.start : one.end])
        return pb.EncodeStreamRequest.FromString(data)

    of_stream = RequestLimits(texts.max_bytes, parse=parse_of_stream)
    limits = {"Encode": texts, "EncodeStream": of_stream, "Score": texts, "GetModels": RequestLimits(1024)}
    return {f"/textmatch.v1.EncoderService/{method}": one for method, one in limits.items()}


def check_enum(field: str, value: EnumValue, known: Sequence[EnumValue]) -> None:
    """Check that this server knows the value: proto3's enums are open, and a newer client may send others.

    Raises:
        InvalidInput: the value is not known.
    """
    if value not in known:
        raise InvalidInput.of_field(field, f"has the unknown value {value}")


def encode_input(request: pb.EncodeRequest, max_texts: int) -> EncodeInput:
    """Check the fields of an Encode request that do not depend on the model.

    Raises:
        InvalidInput: naming the bad fields or texts.
    """
    check_enum("role", request.role, pb.Role.values())
    check_enum("priority", request.priority, pb.Priority.values())
    # Once: each access to the field makes new strings, of up to 32 MB.
    texts = list(request.texts)
    check_texts("texts", texts, max_texts)
    return EncodeInput(
        texts,
        is_query=request.role == pb.ROLE_QUERY,
        dimension=request.dimension if request.HasField("dimension") else None,
        normalize=request.normalize if request.HasField("normalize") else True,
        truncation=truncation("truncate", request.truncate),
    )


def truncation(field: str, value: pb.Truncation.ValueType) -> Truncation | None:
    """What is done with long texts; None: what the model does.

    Raises:
        InvalidInput: the value is not known.
    """
    check_enum(field, value, pb.Truncation.values())
    return _TRUNCATIONS.get(value)


def check_dimension(dimension: int, model_dimension: int) -> None:
    """Check the number of components that a caller asks for.

    Raises:
        InvalidInput: it is less than 1 or more than the model has.
    """
    if not 1 <= dimension <= model_dimension:
        raise InvalidInput.of_field("dimension", f"is {dimension}; it must be 1 to {model_dimension}")


def score_input(
    *,
    query: str,
    texts: Sequence[str],
    pairs: Sequence[Pair],
    has_embeddings: bool,
    max_texts: int,
    truncation: Truncation | None = None,
) -> ScoreInput:
    """Check the fields of a Score request, of which callers set `pairs`, or `query` and one of the others.

    Raises:
        InvalidInput: naming the bad fields, texts or pairs.
    """
    is_given = {"texts": bool(texts), "pairs": bool(pairs), "embeddings": has_embeddings}
    given = [name for name, is_set in is_given.items() if is_set]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InvalidInput.of_field(
            "texts", f"exactly one of texts, pairs and embeddings must be given, not {found}"
        )
    if not pairs:
        if texts:
            check_item_count("texts", len(texts), max_texts)
        name_text = "texts[{}]".format
        _check([("query", query), *((name_text(position), text) for position, text in enumerate(texts))])
        return ScoreInput([query], texts, lambda _: "query", name_text, name_text, truncation)
    if query:
        raise InvalidInput.of_field("query", "must be empty if pairs are given")
    check_item_count("pairs", len(pairs), max_texts)
    name_first, name_second = "pairs[{}].first".format, "pairs[{}].second".format
    named = []
    for position, (first, second) in enumerate(pairs):
        named += [(name_first(position), first), (name_second(position), second)]
    _check(named)
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    return ScoreInput(firsts, seconds, name_first, name_second, "pairs[{}]".format, truncation)


def stored_embeddings(block: bytes, dimension: int, max_texts: int) -> Embeddings:
    """(count, dimension) from the wire, rows of length 1.

    Raises:
        InvalidInput: the embeddings are of another dimension, too many, or not finite.
    """
    try:
        embeddings = vectors.unpack(block, dimension)
    except ValueError as error:
        raise InvalidInput.of_field("embeddings", str(error)) from error
    check_item_count("embeddings", len(embeddings), max_texts)
    if not np.isfinite(embeddings).all():
        raise InvalidInput.of_field("embeddings", "must be finite numbers")
    return vectors.normalise(embeddings)


def _check(named_texts: Sequence[tuple[str, str]]) -> None:
    violations = [
        violation for name, text in named_texts if (violation := text_violation(name, text)) is not None
    ]
    if violations:
        raise InvalidInput(violations)

"""Names and settings of collections.

    config = CollectionConfig("faq", bi_encoder="textmatch-bi-encoder-en")
    config.physical("tiny-0123456789ab")  ->  "faq--tiny-0123456789ab--5f3a9c1e"

A collection has one physical collection in Qdrant for each model that it was built with. Its name ends with
the generation of the collection: a random id of this creation. A collection that is deleted and created again
has another generation, and so other names in Qdrant and other keys in Redis. Nothing that still works on the
old one can reach the new one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from textmatch.errors import InvalidInput, Violation, raise_violations
from textmatch.filters import MAX_FIELD_BYTES

DEFAULT_COLLECTION = "default"
INDEX_KINDS = ("keyword", "integer", "float", "bool", "datetime")
MAX_PAYLOAD_INDEXES = 64
# Not allowed in names: it separates the parts of names in Qdrant.
SEPARATOR = "--"
MIN_PASSAGE_TOKENS = 32
MAX_PASSAGE_TOKENS = 8_192
# Larger passages find less: bench/RESULTS.md.
DEFAULT_PASSAGE_TOKENS = 256

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_GENERATION_BYTES = 4
_TENANT_WORD = "tenant"


def name_violation(field: str, name: str) -> Violation | None:
    """The problem with the name of a collection; None if there is none."""
    if _NAME.fullmatch(name) and SEPARATOR not in name:
        return None
    return Violation.of_field(
        field,
        f"is {name[:80]!r}; it must have 1 to 63 characters a-z, 0-9, - and _, begin with a letter or digit,"
        f" and not contain {SEPARATOR}",
    )


@dataclass(frozen=True)
class PayloadIndex:
    """An attribute on which filters are fast.

    Attributes:
        field: path within the attributes: "author.name".
        kind: one of INDEX_KINDS.
        is_tenant: of a keyword: documents with the same value are stored next to each other.
    """

    field: str
    kind: str
    is_tenant: bool = False

    @classmethod
    def parse(cls, text: str) -> PayloadIndex:
        """Parse `year:integer` or `customer:keyword:tenant`.

        Raises:
            InvalidInput: it has another form.
        """
        *path, kind = text.strip().split(":")
        is_tenant = len(path) > 1 and kind == _TENANT_WORD
        if is_tenant:
            *path, kind = path
        index = cls(":".join(path), kind, is_tenant)
        raise_violations([index.violation("index")])
        return index

    def violation(self, field: str) -> Violation | None:
        """The problem with it; None if there is none."""
        if not self.field or self.kind not in INDEX_KINDS:
            kinds = ", ".join(INDEX_KINDS)
            shown = f"{self.field}:{self.kind}"
            return Violation.of_field(
                field, f"is {shown!r:.80}; it must be attribute:kind, with a kind of {kinds}"
            )
        if self.is_tenant and self.kind != INDEX_KINDS[0]:
            return Violation.of_field(field, f"is a tenant of kind {self.kind}; only keywords can be tenants")
        size_bytes = len(self.field.encode(errors="replace"))
        if size_bytes > MAX_FIELD_BYTES:
            return Violation.of_field(
                field, f"has an attribute of {size_bytes:,} bytes; the limit is {MAX_FIELD_BYTES}"
            )
        return None


@dataclass(frozen=True)
class CollectionConfig:
    """What an installation knows of a collection. `textmatch.queue.registry` keeps it.

    Attributes:
        generation: a random id of this creation; "" before the collection `default` is made.
        owner: the id of the installation that it belongs to.
        bi_encoder: the model for its first document, by name or model id; "": the default one.
        cross_encoder: the model that scores pairs; "": the default one.
        lexical: it has a BM25 index.
        passage_tokens: a longer text is divided into passages of at most so many tokens, or as many as the
            model reads if that is less. 0: texts are not divided, and the end of a longer one is not read.
        passage_overlap: about so many tokens at the end of a passage begin the next one.
        created_at: seconds since 1970.
    """

    name: str = DEFAULT_COLLECTION
    generation: str = ""
    owner: str = ""
    bi_encoder: str = ""
    cross_encoder: str = ""
    lexical: bool = True
    payload_indexes: tuple[PayloadIndex, ...] = ()
    passage_tokens: int = DEFAULT_PASSAGE_TOKENS
    passage_overlap: int = 0
    created_at: float = 0.0

    def check(self) -> None:
        """Check the name, the indexes and the passages.

        Raises:
            InvalidInput: naming each problem.
        """
        count = len(self.payload_indexes)
        if count > MAX_PAYLOAD_INDEXES:
            description = f"has {count:,} indexes; the limit is {MAX_PAYLOAD_INDEXES}"
            raise InvalidInput.of_field("collection.payload_indexes", description)
        indexes = enumerate(self.payload_indexes)
        raise_violations(
            [
                name_violation("collection.name", self.name),
                *(one.violation(f"collection.payload_indexes[{position}]") for position, one in indexes),
                *self._passage_violations(),
            ]
        )

    def _passage_violations(self) -> Iterator[Violation]:
        tokens, overlap = self.passage_tokens, self.passage_overlap
        if tokens and not MIN_PASSAGE_TOKENS <= tokens <= MAX_PASSAGE_TOKENS:
            yield Violation.of_field(
                "collection.passage_tokens",
                f"is {tokens}; it must be 0, or {MIN_PASSAGE_TOKENS} to {MAX_PASSAGE_TOKENS:,}",
            )
        if not 0 <= overlap <= tokens // 2:
            description = f"is {overlap}; it must be 0 to half of passage_tokens: {tokens // 2:,}"
            yield Violation.of_field("collection.passage_overlap", description)

    def created(self, owner: str, created_at: float) -> CollectionConfig:
        """The same settings for a new collection."""
        generation = secrets.token_hex(_GENERATION_BYTES)
        return replace(self, generation=generation, owner=owner, created_at=created_at)

    def has_settings_of(self, other: CollectionConfig) -> bool:
        """Whether both were created with the same settings."""
        other = replace(other, generation=self.generation, owner=self.owner, created_at=self.created_at)
        return self == other

    def physical(self, model_id: str) -> str:
        """The name in Qdrant of the physical collection that a model built."""
        return SEPARATOR.join((self.name, model_id, self.generation))

    def model_of(self, physical: str) -> str:
        """The model id of a physical collection of this one; "" if it belongs to another collection."""
        prefix, suffix = f"{self.name}{SEPARATOR}", f"{SEPARATOR}{self.generation}"
        if len(physical) <= len(prefix) + len(suffix) or not physical.startswith(prefix):
            return ""
        return physical[len(prefix) : -len(suffix)] if physical.endswith(suffix) else ""

    def to_mapping(self) -> dict[str, Any]:
        """JSON-like values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: object) -> CollectionConfig:
        """The reverse of `to_mapping`.

        Raises:
            InvalidInput: the values have another form.
        """
        try:
            content = dict(values)  # type: ignore[call-overload]
            indexes = tuple(PayloadIndex(**one) for one in content.pop("payload_indexes"))
            return cls(**content, payload_indexes=indexes)
        except (TypeError, ValueError, KeyError) as error:
            raise InvalidInput.of_field("collection", f"has an unreadable entry: {error}") from error


def normalized(name: str) -> str:
    """The name that a request means: "" stands for `default`.

    Raises:
        InvalidInput: it cannot be the name of a collection.
    """
    raise_violations([name_violation("collection", name or DEFAULT_COLLECTION)])
    return name or DEFAULT_COLLECTION

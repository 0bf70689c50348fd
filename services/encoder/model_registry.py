"""The loaded models as the rest of the service sees them. Free of torch, which only loading.py reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.encoder.batching import EngineModel
from textmatch.errors import InvalidInput, ModelNotFound
from textmatch.models.fast_tokenizer import Pair, TokenizedText
from textmatch.vectors import Embeddings

Scores = NDArray[np.float32]


class EmbeddingScorer(Protocol):
    """As textmatch.models.embedding_scorers and textmatch.models.embedding_scorers have it."""

    def score(self, first: Embeddings, second: Embeddings) -> tuple[Scores, Scores]:
        """Scores in 0..1, and what they came from."""
        ...


class Model(Protocol):
    """What all models tell about themselves."""

    @property
    def name(self) -> str: ...
    @property
    def model_id(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def is_packed(self) -> bool: ...


class BiEncoder(Model, Protocol):
    """As textmatch.models.bi_encoder has it; `embed` is the engine's."""

    @property
    def dimension(self) -> int: ...
    @property
    def cosine(self) -> EmbeddingScorer: ...
    @property
    def pair_classifier(self) -> EmbeddingScorer | None: ...
    def tokenize(self, texts: Sequence[str], *, is_query: bool) -> list[TokenizedText]: ...
    def embed(self, batch: Sequence[TokenizedText]) -> Embeddings: ...


class CrossEncoder(Model, Protocol):
    """As textmatch.models.cross_encoder has it; `score` is the engine's."""

    def tokenize_pairs(self, pairs: Sequence[Pair]) -> list[TokenizedText]: ...
    def score(self, batch: Sequence[TokenizedText]) -> tuple[Scores, Scores]: ...


Kind = TypeVar("Kind", bound=Model, covariant=True)


@dataclass(frozen=True)
class Served(Generic[Kind]):
    """A model, and the part of it that the engine runs."""

    model: Kind
    engine_model: EngineModel


@dataclass(frozen=True)
class ModelRegistry:
    """All loaded models; the first of each kind is its default."""

    bi_encoders: Sequence[Served[BiEncoder]]
    cross_encoders: Sequence[Served[CrossEncoder]]

    def all_models(self) -> list[Model]:
        """Of either kind."""
        return [served.model for served in (*self.bi_encoders, *self.cross_encoders)]

    def bi_encoder(self, name: str) -> Served[BiEncoder]:
        """The one with this name or model id; the default one for an empty name.

        Raises:
            ModelNotFound: naming those that are loaded.
        """
        return _find(self.bi_encoders, name, "bi-encoder")

    def cross_encoder(self, name: str) -> Served[CrossEncoder]:
        """The one with this name or model id; the default one for an empty name.

        Raises:
            ModelNotFound: naming those that are loaded.
        """
        return _find(self.cross_encoders, name, "cross-encoder")

    def bi_encoder_with_classifier(self, name: str) -> tuple[Served[BiEncoder], EmbeddingScorer]:
        """The named bi-encoder and its pair classifier; for an empty name, the first that has one.

        Raises:
            ModelNotFound: naming those that are loaded; or none has a classifier.
            InvalidInput: the named model has no classifier.
        """
        candidates = [self.bi_encoder(name)] if name else self.bi_encoders
        for served in candidates:
            if (classifier := served.model.pair_classifier) is not None:
                return served, classifier
        if name:
            raise InvalidInput.of_field("model", f'"{name}" has no pair classifier')
        raise ModelNotFound("", "no bi-encoder with a pair classifier is loaded")


def _find(loaded: Sequence[Served[Kind]], name: str, kind: str) -> Served[Kind]:
    for served in loaded:
        if name in ("", served.model.name, served.model.model_id):
            return served
    names = ", ".join(served.model.name for served in loaded) or "none"
    wanted = f'no {kind} "{name}" is loaded' if name else f"no {kind} is loaded"
    raise ModelNotFound(name, f"{wanted}; loaded: {names}")

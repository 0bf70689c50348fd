"""Where the models lie that the settings name: told before torch, which takes seconds, is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.encoder.settings import NO_MODEL, EncoderSettings
from textmatch.models.resolve import BI_ENCODER_ORGANISATION, CROSS_ENCODER_ORGANISATION, find_model


@dataclass(frozen=True)
class FoundModel:
    """A model that is there, under the name it was asked for."""

    name: str
    directory: Path


@dataclass(frozen=True)
class FoundModels:
    """All models to load; the first of each kind is its default."""

    bi_encoders: Sequence[FoundModel]
    cross_encoders: Sequence[FoundModel]


def find_models(settings: EncoderSettings) -> FoundModels:
    """Find them, and fetch those that only the hub has.

    Raises:
        ModelNotFound: there is no such model.
        UnusableModel: it has no weights in safetensors.
    """
    names = [name.strip() for name in settings.bi_encoder.split(",")]
    cross_names = [] if settings.cross_encoder == NO_MODEL else [settings.cross_encoder]
    return FoundModels(
        [FoundModel(name, find_model(name, BI_ENCODER_ORGANISATION)) for name in names],
        [FoundModel(name, find_model(name, CROSS_ENCODER_ORGANISATION)) for name in cross_names],
    )

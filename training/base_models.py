"""The base model of a training: chosen by the language of the texts, and what of it is trained.

`textmatch train siamese --train pairs.csv …` prints, for instance:

    base: multilingual-e5-small, since 2% of the letters are ASCII; --base chooses another
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    DEFAULT_CROSS_ENCODER,
    ENGLISH_CROSS_ENCODER,
    MINI_LM,
    MULTILINGUAL_E5,
)
from training.data_report import TrainingRow
from training.settings import RunSettings

Settings = TypeVar("Settings", bound=RunSettings)

_SAMPLED_TEXTS = 2_000
# Names and loanwords have other letters now and then. German and French have 1.5 to 4 %.
_ENGLISH_SHARE = 0.995
_MANY_EMBEDDINGS = 100_000

# Pair scorers over a base model: they read two texts at once, which a bi-encoder has never done.
_PAIR_SCORERS = {
    MULTILINGUAL_E5: DEFAULT_CROSS_ENCODER,
    MINI_LM: ENGLISH_CROSS_ENCODER,
    f"{BI_ENCODER_ORGANISATION}/{MINI_LM}": ENGLISH_CROSS_ENCODER,
}


def with_base(settings: Settings, rows: Sequence[TrainingRow], console: Console) -> Settings:
    """The settings with the base model that was asked for, or with the one for the language of the rows."""
    if settings.base:
        return settings
    return replace(settings, base=base_for([text for row in rows for text in row.texts], console))


def base_for(texts: Sequence[str], console: Console) -> str:
    """The name of the built-in model that reads the language of these texts. It is printed."""
    share = _ascii_share(texts[:: max(1, len(texts) // _SAMPLED_TEXTS)])
    name = MINI_LM if share >= _ENGLISH_SHARE else MULTILINGUAL_E5
    console.print(
        f"base: {name}, since {share:.1%} of the letters are ASCII; --base chooses another",
        highlight=False,
        soft_wrap=True,
    )
    return name


def pair_scorer_over(base_name: str) -> str:
    """The built-in pair scorer that is an adapter of this model; "" if there is none."""
    return _PAIR_SCORERS.get(base_name, "")


def freeze_word_embeddings(model: nn.Module, device: str, is_asked: bool | None) -> None:
    """Keep the word embeddings of all transformers in the model as they are.

    Args:
        model: to train.
        device: on which.
        is_asked: the option; None: as `FreezeOption` says.
    """
    for transformer in model.modules():
        if not isinstance(transformer, PreTrainedModel):
            continue
        embeddings = cast("nn.Embedding", transformer.get_input_embeddings())
        is_large = device == "cpu" and len(embeddings.weight) >= _MANY_EMBEDDINGS
        if is_large if is_asked is None else is_asked:
            embeddings.requires_grad_(False)


def _ascii_share(texts: Iterable[str]) -> float:
    """The share of the letters that are ASCII; 1 if there are no letters."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) / len(letters) if letters else 1.0

"""The sbert recipe: mean of the tokens, and a softmax over (u, v, |u - v|) for two classes or more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rich.console import Console
from typer import Option

from training.architecture import BiEncoderSettings, PoolingName, build_bi_encoder
from training.bi_encoder_run import train_bi_encoder
from training.outcome import Outcome
from training.softmax import softmax_task


@dataclass(frozen=True, kw_only=True)
class SbertSettings(BiEncoderSettings):
    """Of the sbert recipe."""

    pooling: Annotated[PoolingName, Option(help="From tokens to one vector.")] = "mean"
    classes: Annotated[
        str, Option(help="What each class is worth as a score, as in no=0,maybe=0.5,yes=1.")
    ] = ""
    new_layer_learning_rate: Annotated[
        float, Option(min=0.0, help="Highest learning rate of the classifier, which starts from nothing.")
    ] = 1e-2


def train_sbert(settings: SbertSettings, console: Console) -> Outcome:
    """Train a bi-encoder and a classifier of its embeddings on pairs with a class."""
    settings.check()
    task = softmax_task("sbert", settings, settings.classes, build_bi_encoder, console)
    return train_bi_encoder(task, settings, settings.new_layer_learning_rate, console)

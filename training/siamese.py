"""The siamese recipe: BERT, an LSTM or none, and a cosine that a contrastive loss teaches, or a softmax."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import ContrastiveLoss, OnlineContrastiveLoss
from transformers import set_seed
from typer import Option

from textmatch.errors import InvalidInput
from training.bi_encoder_run import BiEncoderTask, pair_columns, train_bi_encoder
from training.data_report import TrainingRow, report_data
from training.evaluators import SPEARMAN, CosineAgreement
from training.model_builder import BiEncoderSettings, Lstm, build_bi_encoder
from training.pairs import read_scored_pairs
from training.run_result import Outcome
from training.sbert import softmax_task


@dataclass(frozen=True, kw_only=True)
class SiameseSettings(BiEncoderSettings):
    """Of the siamese recipe."""

    towers: Annotated[
        Literal["shared", "separate"],
        Option(help="One model for both sides, or one for queries and one for documents."),
    ] = "shared"
    lstm: Annotated[Literal["none", "lstm", "bilstm"], Option(help="What follows the transformer.")] = "none"
    lstm_width: Annotated[int, Option(min=1, help="Of one direction.")] = 128
    lstm_layers: Annotated[int, Option(min=1)] = 1
    head: Annotated[
        Literal["cosine", "softmax"],
        Option(help="What scores a pair: the cosine, or a classifier of two embeddings."),
    ] = "cosine"
    loss: Annotated[
        Literal["contrastive", "online-contrastive"],
        Option(help="Of the cosine; online: only the hard pairs of each batch count, labels must be 0 or 1."),
    ] = "contrastive"
    margin: Annotated[
        float,
        Option(min=0.0, max=2.0, help="Distance (1 - cosine) from which on unlike pairs are far enough."),
    ] = 0.5
    classes: Annotated[str, Option(help="Of a softmax: what each class is worth, as in no=0,yes=1.")] = ""
    new_layer_learning_rate: Annotated[
        float, Option(min=0.0, help="Highest learning rate of LSTM and classifier, which start from nothing.")
    ] = 1e-3


def train_siamese(settings: SiameseSettings, console: Console) -> Outcome:
    """Train a siamese bi-encoder on pairs with a label from 0 (unlike) to 1 (alike)."""
    settings.check()
    if settings.head == "softmax":
        task = softmax_task("siamese", settings, settings.classes, _build, console)
    else:
        task = _cosine_task(settings, console)
    with warnings.catch_warnings():
        # Labels between 0 and 1 are meant: they weigh both halves of the loss.
        warnings.filterwarnings("ignore", "ContrastiveLoss expects binary labels")
        return train_bi_encoder(task, settings, settings.new_layer_learning_rate, console)


def _cosine_task(settings: SiameseSettings, console: Console) -> BiEncoderTask:
    pairs = [pair for path in settings.train for pair in read_scored_pairs(path, settings.form)]
    is_online = settings.loss == "online-contrastive"
    if is_online and any(pair.score not in (0.0, 1.0) for pair in pairs):
        raise InvalidInput.of_field("loss", "online-contrastive needs labels that are 0 or 1")
    rows = [TrainingRow((pair.first, pair.second), f"{pair.score:g}") for pair in pairs]
    set_seed(settings.seed)
    model = _build(settings)
    loss_class = OnlineContrastiveLoss if is_online else ContrastiveLoss
    labels = [int(pair.score) if is_online else pair.score for pair in pairs]
    return BiEncoderTask(
        recipe="siamese",
        report=report_data(settings, rows, console),
        model=model,
        loss=loss_class(model, margin=settings.margin),
        dataset=pair_columns([pair.first for pair in pairs], [pair.second for pair in pairs], labels),
        evaluator_of=lambda path: CosineAgreement(read_scored_pairs(path, settings.form)),
        metric=SPEARMAN,
    )


def _build(settings: SiameseSettings) -> SentenceTransformer:
    lstm = Lstm(settings.lstm_width, settings.lstm_layers, settings.lstm == "bilstm")
    return build_bi_encoder(
        settings,
        lstm=None if settings.lstm == "none" else lstm,
        has_separate_towers=settings.towers == "separate",
    )

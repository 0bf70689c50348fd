"""The siamese recipe: transformer, optional LSTM, and a contrastive loss on the cosine or a softmax."""

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
from training.bi_encoder_run import BiEncoderTask, pair_dataset, train_bi_encoder
from training.data_report import TrainingRow, report_data
from training.evaluators import SPEARMAN, CosineEvaluator
from training.examples import read_scored_pairs
from training.fit import RunResult
from training.model_builder import BiEncoderSettings, LstmConfig, build_bi_encoder
from training.sbert import softmax_task
from training.trainers import TrainingPart


@dataclass(frozen=True, kw_only=True)
class SiameseSettings(BiEncoderSettings):
    """Options of the siamese recipe."""

    towers: Annotated[
        Literal["shared", "separate"],
        Option(help="One model for both sides, or one for queries and one for documents."),
    ] = "shared"
    lstm: Annotated[Literal["none", "lstm", "bilstm"], Option(help="Layers after the transformer.")] = "none"
    lstm_width: Annotated[int, Option(min=1, help="Width of one direction.")] = 128
    lstm_layers: Annotated[int, Option(min=1)] = 1
    head: Annotated[
        Literal["cosine", "softmax"],
        Option(help="What is trained: the cosine, or a classifier of two embeddings."),
    ] = "cosine"
    loss: Annotated[
        Literal["contrastive", "online-contrastive"],
        Option(help="Loss of the cosine; online: only the hard pairs of a batch, labels must be 0 or 1."),
    ] = "contrastive"
    margin: Annotated[
        float, Option(min=0.0, max=2.0, help="Distance (1 - cosine) to which dissimilar pairs are pushed.")
    ] = 0.5
    classes: Annotated[str, Option(help="Score of each class of a softmax, as in no=0,yes=1.")] = ""
    new_layer_learning_rate: Annotated[
        float,
        Option(min=0.0, help="Peak learning rate of LSTM and classifier, which start from random weights."),
    ] = 1e-3


def train_siamese(settings: SiameseSettings, console: Console) -> RunResult:
    """Train a siamese bi-encoder on pairs with a label from 0 (different) to 1 (same)."""
    settings.check()
    if settings.head == "softmax":
        task = softmax_task("siamese", settings, settings.classes, _build, console)
    else:
        task = _cosine_task(settings, console)
    with warnings.catch_warnings():
        # Graded labels are intended: they weight the two terms of the loss.
        warnings.filterwarnings("ignore", "ContrastiveLoss expects binary labels")
        return train_bi_encoder(task, settings, settings.new_layer_learning_rate, console)


def _cosine_task(settings: SiameseSettings, console: Console) -> BiEncoderTask:
    pairs = [pair for path in settings.train for pair in read_scored_pairs(path, settings.file_format)]
    is_online = settings.loss == "online-contrastive"
    if is_online and any(pair.score not in (0.0, 1.0) for pair in pairs):
        raise InvalidInput.of_field("loss", "online-contrastive needs labels that are 0 or 1")
    rows = [TrainingRow((pair.first, pair.second), f"{pair.score:g}") for pair in pairs]
    set_seed(settings.seed)
    model = _build(settings)
    dataset = pair_dataset(pairs, [int(pair.score) if is_online else pair.score for pair in pairs])
    loss_class = OnlineContrastiveLoss if is_online else ContrastiveLoss
    return BiEncoderTask(
        recipe="siamese",
        report=report_data(settings, rows, model.tokenizer, console),
        model=model,
        parts=[TrainingPart(dataset, loss_class(model, margin=settings.margin))],
        evaluator_of=lambda path: CosineEvaluator(read_scored_pairs(path, settings.file_format)),
        metric=SPEARMAN,
    )


def _build(settings: SiameseSettings) -> SentenceTransformer:
    lstm = LstmConfig(settings.lstm_width, settings.lstm_layers, settings.lstm == "bilstm")
    return build_bi_encoder(
        settings,
        lstm=None if settings.lstm == "none" else lstm,
        has_separate_towers=settings.towers == "separate",
    )

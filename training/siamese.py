"""The recipes for labelled pairs: siamese, cosent and sbert. They train both sides of a pair alike.

* siamese: transformer, optional LSTM, and a loss of the cosine, or a classifier over both embeddings.
* cosent: the same with CoSENT, which learns the order of the pairs.
* sbert: a classifier over (u, v, |u - v|) of the embeddings.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    AnglELoss,
    CachedMultipleNegativesRankingLoss,
    ContrastiveLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
    OnlineContrastiveLoss,
    SoftmaxLoss,
)
from torch import nn
from transformers import set_seed
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.io.columns import PAIR
from textmatch.io.data_files import MissingColumns
from training.base_models import with_base
from training.bi_encoder_run import BiEncoderTask, pair_dataset, text_dataset, train_bi_encoder
from training.data_report import TrainingRow, report_data
from training.evaluators import ACCURACY, SPEARMAN, ClassEvaluator, CosineEvaluator
from training.examples import ScoredPair, read_class_pairs, read_scored_pairs, read_texts
from training.fit import RunResult
from training.labels import find_classes, require_two_scores
from training.model_builder import BiEncoderSettings, LstmConfig, PoolingName, build_bi_encoder
from training.settings import LearningRateOption, PassesOption, with_length
from training.trainers import BOTH_WAYS, LengthSortedBatchSampler, TrainingPart

LossName: TypeAlias = Literal["contrastive", "online-contrastive", "cosent", "angle", "in-batch"]
Settings = TypeVar("Settings", bound=BiEncoderSettings)

# Measured on 6,000 Chinese pairs: 2e-5 and one pass learn half as much.
_LEARNING_RATE = 5e-5
_PASSES = 3


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
    epochs: PassesOption = 0
    learning_rate: LearningRateOption = _LEARNING_RATE
    loss: Annotated[
        LossName,
        Option(
            help="Loss of the cosine. contrastive: dissimilar pairs are pushed apart; online-contrastive:"
            " only the hard pairs of a batch, labels must be 0 or 1; cosent and angle: the order of pairs;"
            " in-batch: pairs with the same meaning only, the other texts of a batch are the negatives."
        ),
    ] = "contrastive"
    margin: Annotated[
        float,
        Option(
            min=0.0, max=2.0, help="Distance (1 - cosine) to which contrastive losses push dissimilar pairs."
        ),
    ] = 0.5
    temperature: Annotated[
        float,
        Option(min=0.001, help="cosent, angle and in-batch divide cosines by it; 0.05 is a scale of 20."),
    ] = 0.05
    positive_from: Annotated[
        float, Option(min=0.0, max=1.0, help="in-batch: lowest score of a pair with the same meaning, 0..1.")
    ] = 0.5
    mini_batch_size: Annotated[
        int,
        Option(
            min=0,
            help="in-batch: texts in memory at a time, for batches of thousands in little memory; 0: all.",
        ),
    ] = 0
    classes: Annotated[str, Option(help="Score of each class of a softmax, as in no=0,yes=1.")] = ""
    new_layer_learning_rate: Annotated[
        float,
        Option(min=0.0, help="Peak learning rate of LSTM and classifier, which start from random weights."),
    ] = 1e-3


@dataclass(frozen=True, kw_only=True)
class CosentSettings(SiameseSettings):
    """Options of the cosent recipe: those of siamese."""

    loss: Annotated[LossName, Option(help="Loss of the cosine, as in siamese.")] = "cosent"


@dataclass(frozen=True, kw_only=True)
class SbertSettings(BiEncoderSettings):
    """Options of the sbert recipe."""

    epochs: PassesOption = 0
    learning_rate: LearningRateOption = _LEARNING_RATE
    pooling: Annotated[PoolingName, Option(help="Pooling of the token vectors.")] = "mean"
    classes: Annotated[str, Option(help="Score of each class, as in no=0,maybe=0.5,yes=1.")] = ""
    new_layer_learning_rate: Annotated[
        float, Option(min=0.0, help="Peak learning rate of the classifier, which starts from random weights.")
    ] = 1e-2


def train_siamese(settings: SiameseSettings, console: Console) -> RunResult:
    """Train a siamese bi-encoder on pairs with a label from 0 (different) to 1 (same)."""
    return _train_siamese("siamese", settings, console)


def train_cosent(settings: CosentSettings, console: Console) -> RunResult:
    """Train a bi-encoder so that the cosines of pairs have the order of their scores (CoSENT)."""
    return _train_siamese("cosent", settings, console)


def train_sbert(settings: SbertSettings, console: Console) -> RunResult:
    """Train a bi-encoder and a classifier of its embeddings on pairs with a class."""
    settings.check()
    task = _softmax_task("sbert", settings, settings.classes, build_bi_encoder, console)
    return train_bi_encoder(task, settings.new_layer_learning_rate, console)


def _train_siamese(recipe: str, settings: SiameseSettings, console: Console) -> RunResult:
    settings.check()
    if settings.head == "softmax":
        task = _softmax_task(recipe, settings, settings.classes, _build, console)
    else:
        task = _cosine_task(recipe, settings, console)
    with warnings.catch_warnings():
        # Graded labels are intended: they weight the two terms of the loss.
        warnings.filterwarnings("ignore", "ContrastiveLoss expects binary labels")
        return train_bi_encoder(task, settings.new_layer_learning_rate, console)


def _cosine_task(recipe: str, settings: SiameseSettings, console: Console) -> BiEncoderTask:
    read = _read_positives if settings.loss == "in-batch" else _read_pairs
    pairs = read(settings, console)
    rows = [TrainingRow((pair.first, pair.second), f"{pair.score:g}") for pair in pairs]
    settings = with_length(with_base(settings, rows, console), len(rows), _PASSES, console)
    set_seed(settings.seed)
    model = _build(settings)
    report = report_data(settings, rows, model.tokenizer, console)
    if settings.loss == "in-batch":
        dataset = text_dataset([(pair.first, pair.second) for pair in pairs])
    else:
        # The online loss compares labels with whole numbers.
        to_label = int if settings.loss == "online-contrastive" else float
        dataset = pair_dataset(pairs, [to_label(pair.score) for pair in pairs])
    return BiEncoderTask(
        recipe=recipe,
        settings=settings,
        report=report,
        model=model,
        parts=[TrainingPart(dataset, _cosine_loss(model, settings))],
        evaluator_of=lambda path: CosineEvaluator(
            read_scored_pairs(path, settings.pair_format, settings.range), settings.matryoshka_dimensions
        ),
        metric=SPEARMAN,
        # A sentence that is twice in a batch would be its own negative.
        batch_sampler=NoDuplicatesBatchSampler if settings.loss == "in-batch" else LengthSortedBatchSampler,
    )


def _cosine_loss(model: SentenceTransformer, settings: SiameseSettings) -> nn.Module:
    scale = 1 / settings.temperature
    if settings.loss == "in-batch" and settings.mini_batch_size:
        return CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_size=settings.mini_batch_size, **BOTH_WAYS
        )
    if settings.loss == "in-batch":
        return MultipleNegativesRankingLoss(model, scale=scale, **BOTH_WAYS)
    if settings.loss in ("cosent", "angle"):
        return (CoSENTLoss if settings.loss == "cosent" else AnglELoss)(model, scale=scale)
    contrastive = OnlineContrastiveLoss if settings.loss == "online-contrastive" else ContrastiveLoss
    return contrastive(model, margin=settings.margin)


def _read_pairs(settings: SiameseSettings, _: Console) -> list[ScoredPair]:
    """All pairs, of which not all have the same score."""
    pairs = [
        pair
        for path in settings.train
        for pair in read_scored_pairs(path, settings.pair_format, settings.range)
    ]
    require_two_scores(
        (pair.score for pair in pairs),
        "Add pairs with other scores, or use --loss in-batch, which needs none.",
    )
    if settings.loss == "online-contrastive" and any(pair.score not in (0.0, 1.0) for pair in pairs):
        raise InvalidInput.of_field("loss", "online-contrastive needs labels that are 0 or 1")
    return pairs


def _read_positives(settings: SiameseSettings, console: Console) -> list[ScoredPair]:
    """The pairs with the same meaning, those of files of two columns included."""
    pairs = [pair for path in settings.train for pair in _labelled_or_not(path, settings)]
    positives = [replace(pair, score=1.0) for pair in pairs if pair.score >= settings.positive_from]
    if not positives:
        problem = f"no pair has a score of {settings.positive_from:g} or more"
        raise InvalidInput.of_field("positive-from", problem)
    if len(positives) < len(pairs):
        console.print(f"{len(positives):,} of {len(pairs):,} pairs mean the same; the others are left out")
    return positives


def _labelled_or_not(path: Path, settings: SiameseSettings) -> Sequence[ScoredPair]:
    """The pairs of a file; those of a file without scores have the score 1."""
    try:
        return read_scored_pairs(path, settings.pair_format, settings.range)
    except MissingColumns as error:
        try:
            texts = read_texts(path, PAIR, settings.file_format.of_width(len(PAIR)))
        except InvalidInput:
            raise error from None
        return [ScoredPair(first, second, 1.0) for first, second in texts]


def _softmax_task(
    recipe: str,
    settings: Settings,
    chosen_classes: str,
    build: Callable[[Settings], SentenceTransformer],
    console: Console,
) -> BiEncoderTask:
    """Pairs with a class, and a linear layer over their two embeddings.

    Raises:
        InvalidInput: a file cannot be read, or its labels are not classes.
    """
    if settings.matryoshka_dimensions:
        raise InvalidInput.of_field("matryoshka", "a classifier reads embeddings of one length")
    pairs = [pair for path in settings.train for pair in read_class_pairs(path, settings.pair_format)]
    classes = find_classes([pair.label for pair in pairs], chosen_classes)
    console.print(f"classes: {classes}")
    rows = [TrainingRow((pair.first, pair.second), pair.label) for pair in pairs]
    settings = with_length(with_base(settings, rows, console), len(rows), _PASSES, console)
    set_seed(settings.seed)
    model = build(settings)
    report = report_data(settings, rows, model.tokenizer, console)
    loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, len(classes.names))

    dataset = pair_dataset(pairs, [classes.names.index(pair.label) for pair in pairs])

    def evaluator_of(path: Path) -> ClassEvaluator:
        evaluated = read_class_pairs(path, settings.pair_format)
        classes.check((pair.label for pair in evaluated), str(path))
        return ClassEvaluator(evaluated, classes.names, loss.classifier)

    return BiEncoderTask(
        recipe=recipe,
        settings=settings,
        report=report,
        model=model,
        parts=[TrainingPart(dataset, loss)],
        evaluator_of=evaluator_of,
        metric=ACCURACY,
        classes=classes,
    )


def _build(settings: SiameseSettings) -> SentenceTransformer:
    lstm = LstmConfig(settings.lstm_width, settings.lstm_layers, settings.lstm == "bilstm")
    return build_bi_encoder(
        settings,
        lstm=None if settings.lstm == "none" else lstm,
        has_separate_towers=settings.towers == "separate",
    )

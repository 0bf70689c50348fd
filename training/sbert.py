"""The sbert recipe: mean of the tokens, and a softmax over (u, v, |u - v|) for two classes or more.

A softmax over (u, v, |u - v|): what sbert trains with, and siamese if it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from transformers import set_seed
from typer import Option

from training.bi_encoder_run import BiEncoderTask, check_labels, find_classes, pair_columns, train_bi_encoder
from training.data_report import TrainingRow, report_data
from training.evaluators import ACCURACY, ClassAccuracy, PairEvaluator
from training.model_builder import BiEncoderSettings, PoolingName, build_bi_encoder
from training.pairs import read_class_pairs
from training.run_result import Outcome

Settings = TypeVar("Settings", bound=BiEncoderSettings)


def softmax_task(
    recipe: str,
    settings: Settings,
    chosen_classes: str,
    build: Callable[[Settings], SentenceTransformer],
    console: Console,
) -> BiEncoderTask:
    """Pairs with a class, and a linear layer over their two embeddings.

    Raises:
        InvalidInput: a file cannot be read, or its labels are no classes.
    """
    pairs = [pair for path in settings.train for pair in read_class_pairs(path, settings.form)]
    classes = find_classes(pairs, chosen_classes)
    rows = [TrainingRow((pair.first, pair.second), pair.label) for pair in pairs]
    report = report_data(settings, rows, console)
    set_seed(settings.seed)
    model = build(settings)
    loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, len(classes.names))

    def evaluator_of(path: Path) -> PairEvaluator:
        measured = read_class_pairs(path, settings.form)
        check_labels(measured, classes, str(path))
        return ClassAccuracy(measured, classes.names, loss.classifier)

    labels = [classes.names.index(pair.label) for pair in pairs]
    return BiEncoderTask(
        recipe=recipe,
        report=report,
        model=model,
        loss=loss,
        dataset=pair_columns([pair.first for pair in pairs], [pair.second for pair in pairs], labels),
        evaluator_of=evaluator_of,
        metric=ACCURACY,
        classes=classes,
    )


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

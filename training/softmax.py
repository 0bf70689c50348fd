"""A softmax over (u, v, |u - v|): what sbert trains with, and siamese if it is asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from transformers import set_seed

from training.architecture import BiEncoderSettings
from training.bi_encoder_run import BiEncoderTask, pair_columns
from training.classes import check_labels, find_classes
from training.measuring import ACCURACY, ClassAccuracy, PairEvaluator
from training.pairs import read_class_pairs
from training.report import TrainingRow, report_data

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

"""The sbert recipe: a bi-encoder trained by a softmax classifier over (u, v, |u - v|) of its embeddings."""

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

from training.bi_encoder_run import BiEncoderTask, pair_dataset, train_bi_encoder
from training.data_report import TrainingRow, report_data
from training.evaluators import ACCURACY, ClassEvaluator
from training.examples import read_class_pairs
from training.fit import RunResult
from training.labels import find_classes
from training.model_builder import BiEncoderSettings, PoolingName, build_bi_encoder
from training.trainers import TrainingPart

Settings = TypeVar("Settings", bound=BiEncoderSettings)


@dataclass(frozen=True, kw_only=True)
class SbertSettings(BiEncoderSettings):
    """Options of the sbert recipe."""

    pooling: Annotated[PoolingName, Option(help="Pooling of the token vectors.")] = "mean"
    classes: Annotated[str, Option(help="Score of each class, as in no=0,maybe=0.5,yes=1.")] = ""
    new_layer_learning_rate: Annotated[
        float, Option(min=0.0, help="Peak learning rate of the classifier, which starts from random weights.")
    ] = 1e-2


def train_sbert(settings: SbertSettings, console: Console) -> RunResult:
    """Train a bi-encoder and a classifier of its embeddings on pairs with a class."""
    settings.check()
    task = softmax_task("sbert", settings, settings.classes, build_bi_encoder, console)
    return train_bi_encoder(task, settings, settings.new_layer_learning_rate, console)


def softmax_task(
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
    pairs = [pair for path in settings.train for pair in read_class_pairs(path, settings.file_format)]
    classes = find_classes(pairs, chosen_classes)
    rows = [TrainingRow((pair.first, pair.second), pair.label) for pair in pairs]
    set_seed(settings.seed)
    model = build(settings)
    report = report_data(settings, rows, model.tokenizer, console)
    loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, len(classes.names))

    dataset = pair_dataset(pairs, [classes.names.index(pair.label) for pair in pairs])

    def evaluator_of(path: Path) -> ClassEvaluator:
        evaluated = read_class_pairs(path, settings.file_format)
        classes.check(evaluated, str(path))
        return ClassEvaluator(evaluated, classes.names, loss.classifier)

    return BiEncoderTask(
        recipe=recipe,
        report=report,
        model=model,
        parts=[TrainingPart(dataset, loss)],
        evaluator_of=evaluator_of,
        metric=ACCURACY,
        classes=classes,
    )

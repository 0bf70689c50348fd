"""How every bi-encoder is trained, measured and saved; the recipes say with what model, data and loss.

The classes of labelled pairs, and what each is worth as a score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import nn

from textmatch.errors import InvalidInput
from textmatch.models.calibration import PairClassifier
from training.data_report import DataReport
from training.evaluators import PairEvaluator, pair_classifier
from training.fit import Goal, fit, training_arguments
from training.model_builder import BiEncoderSettings
from training.model_files import save_bi_encoder
from training.pairs import ClassPair
from training.run_result import Outcome, finish
from training.trainers import BiEncoderTrainer, LengthSortedBatchSampler

_KNOWN_SCORES = {"contradiction": 0.0, "neutral": 0.5, "entailment": 1.0}


@dataclass(frozen=True)
class Classes:
    """Names and scores of the classes, in the order of the classifier's outputs."""

    names: tuple[str, ...]
    scores: tuple[float, ...]


def find_classes(pairs: Sequence[ClassPair], chosen: str) -> Classes:
    """The classes as the caller gives them (`no=0,maybe=0.5,yes=1`), or as the pairs show them.

    Numbers are worth more the greater they are, in equal steps; the three classes of language inference have
    scores of their own.

    Raises:
        InvalidInput: they cannot be found or do not fit.
    """
    classes = _parse(chosen) if chosen else _found({pair.label for pair in pairs})
    if len(classes.names) < 2:
        raise InvalidInput.of_field("label", f'all pairs have the class "{classes.names[0]}"; two are needed')
    check_labels(pairs, classes, "train")
    return classes


def check_labels(pairs: Sequence[ClassPair], classes: Classes, name: str) -> None:
    """Refuse pairs of other classes.

    Raises:
        InvalidInput: naming the first one.
    """
    for row, pair in enumerate(pairs, start=1):
        if pair.label not in classes.names:
            names = ", ".join(classes.names)
            raise InvalidInput.of_field(f"{name} row {row}", f'class "{pair.label}" is none of {names}')


def _found(labels: set[str]) -> Classes:
    if labels <= _KNOWN_SCORES.keys():
        names = sorted(labels, key=_KNOWN_SCORES.__getitem__)
        return Classes(tuple(names), tuple(_KNOWN_SCORES[name] for name in names))
    try:
        names = sorted(labels, key=float)
    except ValueError:
        shown = ", ".join(sorted(labels)[:5])
        problem = f"say with --classes what each class is worth, such as no=0,yes=1; the file has {shown}"
        raise InvalidInput.of_field("classes", problem) from None
    highest = max(len(names) - 1, 1)
    return Classes(tuple(names), tuple(number / highest for number in range(len(names))))


def _parse(text: str) -> Classes:
    names: list[str] = []
    scores: list[float] = []
    for part in text.split(","):
        name, _, score = part.rpartition("=")
        try:
            scores.append(float(score))
        except ValueError:
            raise InvalidInput.of_field("classes", f'"{part}" is not NAME=SCORE, such as yes=1') from None
        if not name.strip() or not 0 <= scores[-1] <= 1:
            raise InvalidInput.of_field("classes", f'"{part}" needs a name and a score in 0..1')
        names.append(name.strip())
    return Classes(tuple(names), tuple(scores))


# What the two sentences of a pair are called in a dataset; a triple has a third column.
QUERY, DOCUMENT, NEGATIVE = "sentence1", "sentence2", "sentence3"
# Layers that start from nothing learn faster than the ones of the base model.
_NEW_LAYERS = (r"^classifier\.", r"encoder\.(weight|bias)_(ih|hh)_")


@dataclass(frozen=True)
class BiEncoderTask:
    """A recipe's part of a run. `evaluator_of` makes the evaluator of a file of pairs."""

    recipe: str
    report: DataReport
    model: SentenceTransformer
    loss: nn.Module
    dataset: Dataset
    evaluator_of: Callable[[Path], PairEvaluator]
    metric: str
    classes: Classes | None = None
    batch_sampler: Any = LengthSortedBatchSampler


def pair_columns(first: Sequence[str], second: Sequence[str], labels: Sequence[float]) -> Dataset:
    """Queries, documents and their labels as a dataset."""
    return Dataset.from_dict({QUERY: list(first), DOCUMENT: list(second), "label": list(labels)})


def train_bi_encoder(
    task: BiEncoderTask, settings: BiEncoderSettings, new_layer_learning_rate: float, console: Console
) -> Outcome:
    """Train, save with the classifier if there is one, and measure what came out.

    Raises:
        Interrupted: Ctrl-C came.
    """
    goal = Goal(task.metric)
    evaluator = task.evaluator_of(settings.dev) if settings.dev else None
    trainer = BiEncoderTrainer(
        model=task.model,
        args=SentenceTransformerTrainingArguments(
            **training_arguments(settings, goal),
            **_columns(task.model, task.dataset),
            batch_sampler=task.batch_sampler,
            learning_rate_mapping=_rates_of_new_layers(task.loss, new_layer_learning_rate),
        ),
        train_dataset=task.dataset,
        loss=task.loss,
        evaluator=evaluator,
    )
    trainer.schedule = settings.schedule
    fit(trainer, settings, goal, console)
    if trainer.is_world_process_zero():
        base = settings.base if settings.adapter_rank else ""
        save_bi_encoder(task.model, settings.output, _classifier(task), adapter_base=base)
    return finish(
        task.recipe,
        settings,
        report=task.report,
        measure=lambda path: task.evaluator_of(path).measure(task.model),
        base_name=settings.base,
    )


def _classifier(task: BiEncoderTask) -> PairClassifier | None:
    if not isinstance(task.loss, SoftmaxLoss) or task.classes is None:
        return None
    return pair_classifier(task.loss.classifier, task.classes.scores)


def _columns(model: SentenceTransformer, dataset: Dataset) -> dict[str, Any]:
    """First sentences are queries, the others documents: with their prompts, and through their towers."""
    role_of = {
        name: "query" if name == QUERY else "document" for name in dataset.column_names if name != "label"
    }
    prompts = {name: model.prompts[role] for name, role in role_of.items() if model.prompts.get(role)}
    return {"prompts": prompts, "router_mapping": role_of if isinstance(model[0], Router) else {}}


def _rates_of_new_layers(loss: nn.Module, learning_rate: float) -> dict[str, float]:
    names = [name for name, _ in loss.named_parameters()]
    return {
        pattern: learning_rate for pattern in _NEW_LAYERS if any(re.search(pattern, name) for name in names)
    }

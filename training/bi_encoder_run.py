"""Trains, saves and evaluates every bi-encoder. A recipe contributes the model, the data and the loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, SoftmaxLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import nn

from textmatch.errors import InvalidInput
from textmatch.models.calibration import PairClassifier
from training.data_report import DataReport
from training.evaluators import PairEvaluator, embed, pair_classifier
from training.examples import ClassPair, ScoredPair
from training.fit import RunResult, SelectionMetric, finish_run, fit, training_arguments
from training.labels import LabelClasses
from training.model_builder import BiEncoderSettings
from training.model_files import save_bi_encoder
from training.trainers import (
    BiEncoderTrainer,
    LengthSortedBatchSampler,
    TrainingPart,
    data_arguments,
    mix_arguments,
)

# Dataset columns of the two sentences of a pair; a triple has "sentence3".
QUERY, DOCUMENT = "sentence1", "sentence2"
# Randomly initialised layers take a higher learning rate than those of the base model.
_NEW_LAYERS = (r"^classifier\.", r"encoder\.(weight|bias)_(ih|hh)_")
# Training rows whose scores are checked for collapse.
_SAMPLE_ROWS = 64


@dataclass(frozen=True)
class BiEncoderTask:
    """The contribution of a recipe. `evaluator_of` makes the evaluator of a file of pairs.

    The first part is the one that a classifier learns from, and that is sampled to detect collapse.
    """

    recipe: str
    settings: BiEncoderSettings
    report: DataReport
    model: SentenceTransformer
    parts: Sequence[TrainingPart]
    evaluator_of: Callable[[Path], PairEvaluator]
    metric: str
    classes: LabelClasses | None = None
    batch_sampler: Any = LengthSortedBatchSampler
    # Of the batches, one for each part.
    shares: Sequence[float] = ()


def pair_dataset(pairs: Sequence[ScoredPair] | Sequence[ClassPair], labels: Sequence[float]) -> Dataset:
    """Queries, documents and their labels as a dataset."""
    columns = {QUERY: [pair.first for pair in pairs], DOCUMENT: [pair.second for pair in pairs]}
    return Dataset.from_dict({**columns, "label": list(labels)})


def text_dataset(rows: Sequence[Sequence[str]], labels: Sequence[float] = ()) -> Dataset:
    """Texts without roles of their own: anchor, partner and negatives; and labels, if there are some."""
    names = (QUERY, DOCUMENT, *(f"sentence{number}" for number in range(3, len(rows[0]) + 1)))
    columns: dict[str, Any] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(columns | ({"label": list(labels)} if labels else {}))


def train_bi_encoder(task: BiEncoderTask, new_layer_learning_rate: float, console: Console) -> RunResult:
    """Train, save the model with the classifier if there is one, and evaluate it.

    Raises:
        TrainingFailed: the model collapsed.
        TrainingInterrupted: on Ctrl-C.
    """
    settings = task.settings
    metric = SelectionMetric(task.metric)
    if dimensions := settings.matryoshka_dimensions:
        task = replace(task, parts=[_of_dimensions(task.model, part, dimensions) for part in task.parts])
    trainer = BiEncoderTrainer(
        model=task.model,
        args=SentenceTransformerTrainingArguments(
            **training_arguments(settings, metric),
            **mix_arguments(task.shares),
            **_column_roles(task.model, task.parts),
            batch_sampler=task.batch_sampler,
            learning_rate_mapping=_rates_of_new_layers(task.parts[0].loss, new_layer_learning_rate),
        ),
        **data_arguments(task.parts),
        evaluator=task.evaluator_of(settings.dev) if settings.dev else None,
    )
    outcome = fit(trainer, settings, metric, console, lambda: _sample_cosines(task, settings.seed))
    if trainer.is_world_process_zero():
        base = settings.base if settings.adapter_rank else ""
        save_bi_encoder(task.model, settings.output, _classifier(task), adapter_base=base)
    return finish_run(
        task.recipe,
        settings,
        report=task.report,
        measure=lambda path: task.evaluator_of(path).measure(task.model),
        base_name=settings.base,
        outcome=outcome,
    )


def _of_dimensions(model: SentenceTransformer, part: TrainingPart, dimensions: Sequence[int]) -> TrainingPart:
    """The part with the sum of its losses at these dimensions and at the whole length.

    Raises:
        InvalidInput: the embeddings are not as long.
    """
    whole = model.get_embedding_dimension() or 0
    if too_long := [one for one in dimensions if one > whole]:
        raise InvalidInput.of_field("matryoshka", f"{too_long[0]} is above the model's {whole} dimensions")
    all_dimensions = sorted({whole, *dimensions}, reverse=True)
    return replace(part, loss=MatryoshkaLoss(model, part.loss, matryoshka_dims=all_dimensions))


def _sample_cosines(task: BiEncoderTask, seed: int) -> NDArray[np.float32]:
    """The cosine of each query with each document of a sample of the training data: (rows, rows)."""
    dataset = task.parts[0].dataset
    rows = dataset.shuffle(seed=seed).select(range(min(_SAMPLE_ROWS, len(dataset))))
    first = embed(task.model.encode_query, rows[QUERY])
    cosines: NDArray[np.float32] = first @ embed(task.model.encode_document, rows[DOCUMENT]).T
    return cosines


def _classifier(task: BiEncoderTask) -> PairClassifier | None:
    loss = task.parts[0].loss
    if not isinstance(loss, SoftmaxLoss) or task.classes is None:
        return None
    return pair_classifier(loss.classifier, task.classes.scores)


def _column_roles(model: SentenceTransformer, parts: Sequence[TrainingPart]) -> dict[str, Any]:
    """Roles by column: first sentences are queries, others documents. The role sets prompt and tower."""
    names = {name for part in parts for name in part.dataset.column_names if name != "label"}
    role_of = {name: "query" if name == QUERY else "document" for name in sorted(names)}
    prompts = {name: model.prompts[role] for name, role in role_of.items() if model.prompts.get(role)}
    return {"prompts": prompts, "router_mapping": role_of if isinstance(model[0], Router) else {}}


def _rates_of_new_layers(loss: nn.Module, learning_rate: float) -> dict[str, float]:
    names = [name for name, _ in loss.named_parameters()]
    return {
        pattern: learning_rate for pattern in _NEW_LAYERS if any(re.search(pattern, name) for name in names)
    }

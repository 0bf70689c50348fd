"""The simcse recipe: a sentence read twice under dropout is its own positive, the batch its negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from datasets import Dataset
from rich.console import Console
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed
from typer import Option

from training.architecture import BiEncoderSettings, build_bi_encoder
from training.batches import LengthSortedBatchSampler
from training.bi_encoder_run import DOCUMENT, NEGATIVE, QUERY, BiEncoderTask, train_bi_encoder
from training.measuring import SPEARMAN, CosineAgreement
from training.outcome import Outcome
from training.pairs import read_scored_pairs, read_sentences, read_triples
from training.report import TrainingRow, report_data


@dataclass(frozen=True, kw_only=True)
class SimcseSettings(BiEncoderSettings):
    """Of the simcse recipe."""

    dropout: Annotated[
        float | None,
        Option(min=0.0, max=0.9, help="Dropout rate, which is what makes the two readings differ."),
    ] = 0.1
    hard_negatives: Annotated[
        bool, Option(help="Train on triples: a sentence, one that means the same, one that only looks alike.")
    ] = False
    temperature: Annotated[
        float, Option(min=0.001, help="Cosines are divided by it; 0.05 is a scale of 20.")
    ] = 0.05


def train_simcse(settings: SimcseSettings, console: Console) -> Outcome:
    """Train a bi-encoder on plain sentences without labels, or on triples with hard negatives.

    The dev and held-out files hold pairs with a score from 0 to 1.
    """
    settings.check()
    rows = _triples(settings) if settings.hard_negatives else _sentences(settings)
    report = report_data(settings, rows, console)
    columns = [row.texts if settings.hard_negatives else row.texts * 2 for row in rows]
    names = (QUERY, DOCUMENT, NEGATIVE)
    set_seed(settings.seed)
    model = build_bi_encoder(settings)
    task = BiEncoderTask(
        recipe="simcse",
        report=report,
        model=model,
        loss=MultipleNegativesRankingLoss(model, scale=1 / settings.temperature),
        dataset=Dataset.from_dict(dict(zip(names, zip(*columns, strict=True), strict=False))),
        evaluator_of=lambda path: CosineAgreement(read_scored_pairs(path, settings.form)),
        metric=SPEARMAN,
        # The same sentence twice in a batch would be its own negative; plain sentences are distinct already.
        batch_sampler=NoDuplicatesBatchSampler if settings.hard_negatives else LengthSortedBatchSampler,
    )
    return train_bi_encoder(task, settings, settings.learning_rate, console)


def _sentences(settings: SimcseSettings) -> list[TrainingRow]:
    sentences = dict.fromkeys(sentence for path in settings.train for sentence in read_sentences(path))
    return [TrainingRow((sentence,)) for sentence in sentences]


def _triples(settings: SimcseSettings) -> list[TrainingRow]:
    triples = [triple for path in settings.train for triple in read_triples(path, settings.form)]
    return [TrainingRow((triple.anchor, triple.positive, triple.negative)) for triple in triples]

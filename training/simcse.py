"""The simcse recipe: a sentence read twice under dropout is its own positive, the batch its negatives.

Triples for simcse: to pairs that mean the same, texts that a bi-encoder finds close.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from datasets import Dataset
from rich.console import Console
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives
from transformers import set_seed
from typer import Option, echo

from textmatch.errors import InvalidInput
from textmatch.models.bi_encoder import feed_lstm, read_bi_encoder
from textmatch.models.engines import AUTO, resolve_device
from textmatch.models.model_resolver import BI_ENCODER_ORGANISATION, find_model
from training.bi_encoder_run import DOCUMENT, NEGATIVE, QUERY, BiEncoderTask, train_bi_encoder
from training.data_files import FileForm, write_rows
from training.data_report import TrainingRow, report_data
from training.evaluators import SPEARMAN, CosineAgreement
from training.model_builder import DEFAULT_BASE_NAME, BiEncoderSettings, build_bi_encoder
from training.options import short_name
from training.pairs import Triple, read_scored_pairs, read_sentences, read_triples
from training.run_result import Outcome
from training.trainers import LengthSortedBatchSampler


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


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """Of the search for hard negatives."""

    pairs: Annotated[list[Path], Option(help="File of pairs with scores; may be given again.")]
    output: Annotated[Path, Option(help="File to write: anchor, positive and negative with TABs between.")]
    model: Annotated[str, Option(help="Bi-encoder that says what is close.")] = DEFAULT_BASE_NAME
    corpus: Annotated[
        list[Path], Option(help="File with more texts to take negatives from; may be given again.")
    ] = field(default_factory=list)
    positive_from: Annotated[
        float, Option(min=0.0, max=1.0, help="Pairs from this score on mean the same.")
    ] = 0.5
    negatives: Annotated[int, Option(min=1, help="For each pair.")] = 1
    skip: Annotated[
        int, Option(min=0, help="So many of the closest texts are left out: they may mean the same.")
    ] = 0
    depth: Annotated[int, Option(min=1, help="So many of the closest texts are looked at.")] = 50
    margin: Annotated[
        float,
        Option(min=0.0, max=1.0, help="A negative's cosine is below the positive's by this share of it."),
    ] = 0.05
    header: Annotated[
        bool | None, Option("--header/--no-header", help="Whether files begin with a header.")
    ] = None
    columns: Annotated[str, Option(help="Columns to read, by name or number from 1: 2,3,score.")] = ""
    batch_size: Annotated[int, Option(min=1)] = 64
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = AUTO


def mine(settings: MiningSettings) -> None:
    """Find hard negatives for pairs that mean the same, and write triples for simcse --hard-negatives."""
    triples = mine_triples(settings)
    if not triples:
        raise InvalidInput.of_field("depth", "no negative was found; look deeper, or lessen the margin")
    rows = [("anchor", "positive", "negative")]
    rows += [(triple.anchor, triple.positive, triple.negative) for triple in triples]
    write_rows(settings.output, rows)
    echo(f"{short_name(settings.output)}: {len(triples):,} triples")


def mine_triples(settings: MiningSettings) -> list[Triple]:
    """The triples; a pair for which no text is close enough has none.

    Raises:
        InvalidInput: a file cannot be read, or no pair means the same.
    """
    form = FileForm(settings.header, tuple(settings.columns.split(",")) if settings.columns else ())
    pairs = [pair for path in settings.pairs for pair in read_scored_pairs(path, form)]
    same = [pair for pair in pairs if pair.score >= settings.positive_from]
    if not same:
        raise InvalidInput.of_field("positive-from", f"no pair has a score of {settings.positive_from:g}")
    # Second sentences alone would leave the hardest ones out: those of pairs that were judged not the same.
    texts = dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second))
    texts |= dict.fromkeys(text for path in settings.corpus for text in read_sentences(path))
    model = read_bi_encoder(find_model(settings.model, BI_ENCODER_ORGANISATION), settings.model)
    feed_lstm(model)
    mined = mine_hard_negatives(
        Dataset.from_dict(
            {"anchor": [pair.first for pair in same], "positive": [pair.second for pair in same]}
        ),
        model.to(resolve_device(settings.device)),
        corpus=list(texts),
        range_min=settings.skip,
        range_max=settings.skip + settings.depth,
        relative_margin=settings.margin,
        num_negatives=settings.negatives,
        batch_size=settings.batch_size,
        verbose=False,
    )
    return [
        Triple(row["anchor"], row["positive"], row["negative"])
        for row in mined
        if row["negative"] != row["anchor"]
    ]

"""The simcse recipe, and the mining of hard negatives for it.

A sentence encoded twice under dropout is its own positive; the other sentences of the batch are negatives.
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
from training.data_files import (
    FileFormat,
    Triple,
    read_scored_pairs,
    read_sentences,
    read_triples,
    write_rows,
)
from training.data_report import TrainingRow, report_data
from training.evaluators import SPEARMAN, CosineEvaluator
from training.fit import RunResult
from training.model_builder import DEFAULT_BASE_NAME, BiEncoderSettings, build_bi_encoder
from training.settings import ColumnsOption, DeviceOption, HeaderOption, short_path
from training.trainers import LengthSortedBatchSampler


@dataclass(frozen=True, kw_only=True)
class SimcseSettings(BiEncoderSettings):
    """Options of the simcse recipe."""

    dropout: Annotated[
        float | None,
        Option(min=0.0, max=0.9, help="Dropout rate; it makes two encodings of a sentence differ."),
    ] = 0.1
    hard_negatives: Annotated[
        bool, Option(help="Train on triples: a sentence, one with the same meaning, and a hard negative.")
    ] = False
    temperature: Annotated[
        float, Option(min=0.001, help="Cosines are divided by it; 0.05 is a scale of 20.")
    ] = 0.05


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """Options of the mine command."""

    pairs: Annotated[list[Path], Option(help="File of pairs with scores. Can be repeated.")]
    output: Annotated[Path, Option(help="TSV file to write: anchor, positive and negative.")]
    model: Annotated[str, Option(help="Bi-encoder to find similar texts with.")] = DEFAULT_BASE_NAME
    corpus: Annotated[
        list[Path], Option(help="File with more texts to take negatives from. Can be repeated.")
    ] = field(default_factory=list)
    positive_from: Annotated[
        float, Option(min=0.0, max=1.0, help="Lowest score of a pair with the same meaning.")
    ] = 0.5
    negatives: Annotated[int, Option(min=1, help="Negatives per pair.")] = 1
    skip: Annotated[
        int, Option(min=0, help="Most similar texts to leave out, since they may have the same meaning.")
    ] = 0
    depth: Annotated[int, Option(min=1, help="Most similar texts to choose from.")] = 50
    margin: Annotated[
        float,
        Option(min=0.0, max=1.0, help="Share by which a negative's cosine must be below the positive's."),
    ] = 0.05
    header: HeaderOption = None
    columns: ColumnsOption = ""
    batch_size: Annotated[int, Option(min=1)] = 64
    device: DeviceOption = AUTO


def train_simcse(settings: SimcseSettings, console: Console) -> RunResult:
    """Train a bi-encoder on plain sentences without labels, or on triples with hard negatives.

    The dev and held-out files hold pairs with a score from 0 to 1.
    """
    settings.check()
    if settings.hard_negatives:
        triples = [triple for path in settings.train for triple in read_triples(path, settings.file_format)]
        rows = [TrainingRow((triple.anchor, triple.positive, triple.negative)) for triple in triples]
    else:
        sentences = dict.fromkeys(sentence for path in settings.train for sentence in read_sentences(path))
        rows = [TrainingRow((sentence,)) for sentence in sentences]
    columns = [row.texts if settings.hard_negatives else row.texts * 2 for row in rows]
    names = (QUERY, DOCUMENT, NEGATIVE)
    set_seed(settings.seed)
    model = build_bi_encoder(settings)
    report = report_data(settings, rows, model.tokenizer, console)
    task = BiEncoderTask(
        recipe="simcse",
        report=report,
        model=model,
        loss=MultipleNegativesRankingLoss(model, scale=1 / settings.temperature),
        dataset=Dataset.from_dict(dict(zip(names, zip(*columns, strict=True), strict=False))),
        evaluator_of=lambda path: CosineEvaluator(read_scored_pairs(path, settings.file_format)),
        metric=SPEARMAN,
        # A sentence that is twice in a batch would be its own negative. Plain sentences are distinct already.
        batch_sampler=NoDuplicatesBatchSampler if settings.hard_negatives else LengthSortedBatchSampler,
    )
    return train_bi_encoder(task, settings, settings.learning_rate, console)


def mine(settings: MiningSettings) -> None:
    """Find hard negatives for pairs with the same meaning, and write triples for simcse --hard-negatives."""
    triples = mine_triples(settings)
    if not triples:
        raise InvalidInput.of_field("depth", "no negative was found; increase --depth or reduce --margin")
    rows = [("anchor", "positive", "negative")]
    rows += [(triple.anchor, triple.positive, triple.negative) for triple in triples]
    write_rows(settings.output, rows)
    echo(f"{short_path(settings.output)}: {len(triples):,} triples")


def mine_triples(settings: MiningSettings) -> list[Triple]:
    """The triples. A pair has none if no text is similar enough.

    Raises:
        InvalidInput: a file cannot be read, or no pair has the same meaning.
    """
    file_format = FileFormat.of_options(settings.header, settings.columns)
    pairs = [pair for path in settings.pairs for pair in read_scored_pairs(path, file_format)]
    same = [pair for pair in pairs if pair.score >= settings.positive_from]
    if not same:
        problem = f"no pair has a score of {settings.positive_from:g} or more"
        raise InvalidInput.of_field("positive-from", problem)
    # Both sentences of all pairs: the hardest negatives are those of pairs with a low score.
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

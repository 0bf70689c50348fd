"""The simcse recipe, and the mining of hard negatives for it.

A sentence encoded twice under dropout is its own positive; the other sentences of the batch are negatives.
Triples, paraphrases and pairs with a score can be learnt in one run, each file in batches of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from datasets import Dataset
from rich.console import Console
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives
from transformers import set_seed
from typer import Option, echo

from textmatch.errors import InvalidInput
from textmatch.io.columns import PAIR
from textmatch.io.data_files import FileFormat
from textmatch.models.bi_encoder import feed_lstm, read_bi_encoder
from textmatch.models.engines import AUTO, resolve_device
from textmatch.models.model_resolver import BI_ENCODER_ORGANISATION, find_model
from training.base_models import base_for, with_base
from training.bi_encoder_run import BiEncoderTask, text_dataset, train_bi_encoder
from training.data_report import TrainingRow, report_data
from training.evaluators import SPEARMAN, CosineEvaluator
from training.examples import Triple, read_scored_pairs, read_sentences, read_texts, read_triples, write_rows
from training.fit import RunResult
from training.labels import ScoreRange
from training.model_builder import BiEncoderSettings, build_bi_encoder
from training.settings import (
    ColumnsOption,
    DeviceOption,
    HeaderOption,
    MixOption,
    ScoreRangeOption,
    parse_mix,
    short_path,
)
from training.trainers import BOTH_WAYS, LengthSortedBatchSampler, ScaledLoss, TrainingPart


@dataclass(frozen=True, kw_only=True)
class SimcseSettings(BiEncoderSettings):
    """Options of the simcse recipe."""

    dropout: Annotated[
        float | None,
        Option(min=0.0, max=0.9, help="Dropout rate; it makes two encodings of a sentence differ."),
    ] = 0.1
    both_directions: Annotated[
        bool,
        Option(help="Whether each of the two encodings of a sentence, or texts of a pair, finds the other."),
    ] = False
    hard_negatives: Annotated[
        bool, Option(help="Train on triples: a sentence, one with the same meaning, and a hard negative.")
    ] = False
    paraphrases: Annotated[
        list[Path],
        Option(
            help="File of pairs with the same meaning, such as translations, to learn too. Can be repeated."
        ),
    ] = field(default_factory=list)
    graded_pairs: Annotated[
        list[Path],
        Option(help="File of pairs with scores, to learn their order too (CoSENT). Can be repeated."),
    ] = field(default_factory=list)
    graded_weight: Annotated[float, Option(min=0.0, help="Factor of the loss of graded pairs.")] = 1.0
    mix: MixOption = ""
    temperature: Annotated[
        float, Option(min=0.001, help="Cosines are divided by it; 0.05 is a scale of 20.")
    ] = 0.05

    @property
    def training_files(self) -> list[Path]:
        """The files of all kinds."""
        return [*self.train, *self.paraphrases, *self.graded_pairs]


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """Options of the mine command."""

    pairs: Annotated[list[Path], Option(help="File of pairs with scores. Can be repeated.")]
    output: Annotated[Path, Option(help="TSV file to write: anchor, positive and negative.")]
    model: Annotated[
        str, Option(help="Bi-encoder to find similar texts with. Default: by the language of the texts.")
    ] = ""
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
    score_range: ScoreRangeOption = (0.0, 1.0)
    header: HeaderOption = None
    columns: ColumnsOption = ""
    batch_size: Annotated[int, Option(min=1)] = 64
    device: DeviceOption = AUTO


def train_simcse(settings: SimcseSettings, console: Console) -> RunResult:
    """Train a bi-encoder on plain sentences without labels, or on triples with hard negatives.

    The dev and held-out files hold pairs with a score from 0 to 1.
    """
    settings.check()
    contrastive, paraphrases, graded = _read_rows(settings)
    files = [*contrastive, *paraphrases, *graded]
    shares = parse_mix(settings.mix, len(files))
    rows = [row for of_file in files for row in of_file]
    settings = with_base(settings, rows, console)
    set_seed(settings.seed)
    model = build_bi_encoder(settings)
    report = report_data(settings, rows, model.tokenizer, console)
    scale = 1 / settings.temperature
    ranking = MultipleNegativesRankingLoss(model, scale=scale)
    both_ways = MultipleNegativesRankingLoss(model, scale=scale, **BOTH_WAYS)
    ordering = ScaledLoss(CoSENTLoss(model), settings.graded_weight)
    parts = [
        *(
            TrainingPart(_dataset(rows), both_ways if settings.both_directions else ranking)
            for rows in contrastive
        ),
        *(TrainingPart(_dataset(rows), both_ways) for rows in paraphrases),
        *(TrainingPart(_dataset(rows), ordering) for rows in graded),
    ]
    task = BiEncoderTask(
        recipe="simcse",
        settings=settings,
        report=report,
        model=model,
        parts=parts,
        evaluator_of=lambda path: CosineEvaluator(
            read_scored_pairs(path, settings.pair_format, settings.range), settings.matryoshka_dimensions
        ),
        metric=SPEARMAN,
        batch_sampler=_batch_sampler if settings.hard_negatives or paraphrases else LengthSortedBatchSampler,
        shares=shares,
    )
    return train_bi_encoder(task, settings.learning_rate, console)


def _read_rows(settings: SimcseSettings) -> tuple[list[list[TrainingRow]], ...]:
    """The rows of each file: contrastive ones, paraphrases, graded pairs. Plain sentences are one file."""
    file_format = settings.file_format
    if settings.hard_negatives:
        contrastive = [
            [TrainingRow((one.anchor, one.positive, one.negative)) for one in read_triples(path, file_format)]
            for path in settings.train
        ]
    else:
        sentences = dict.fromkeys(
            sentence for path in settings.train for sentence in read_sentences(path, file_format)
        )
        contrastive = [[TrainingRow((sentence,)) for sentence in sentences]]
    paraphrases = [
        [TrainingRow(texts) for texts in read_texts(path, PAIR, file_format.of_width(2))]
        for path in settings.paraphrases
    ]
    graded = [
        [
            TrainingRow((pair.first, pair.second), f"{pair.score:g}")
            for pair in read_scored_pairs(path, settings.pair_format, score_range=None)
        ]
        for path in settings.graded_pairs
    ]
    return contrastive, paraphrases, graded


def _dataset(rows: Sequence[TrainingRow]) -> Dataset:
    """The texts as columns, a single text twice; and the labels, if the rows have some."""
    texts = [row.texts if len(row.texts) > 1 else row.texts * 2 for row in rows]
    return text_dataset(texts, [float(row.label) for row in rows] if rows[0].label else ())


def _batch_sampler(dataset: Dataset, **options: Any) -> DefaultBatchSampler:
    """A sentence that is twice in a batch would be its own negative; graded pairs have no such negatives."""
    is_graded = "label" in dataset.column_names
    return (LengthSortedBatchSampler if is_graded else NoDuplicatesBatchSampler)(dataset, **options)


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
    score_range = ScoreRange.of_option(settings.score_range)
    pairs = [pair for path in settings.pairs for pair in read_scored_pairs(path, file_format, score_range)]
    same = [pair for pair in pairs if pair.score >= settings.positive_from]
    if not same:
        problem = f"no pair has a score of {settings.positive_from:g} or more"
        raise InvalidInput.of_field("positive-from", problem)
    # Both sentences of all pairs: the hardest negatives are those of pairs with a low score.
    texts = dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second))
    texts |= dict.fromkeys(text for path in settings.corpus for text in read_sentences(path))
    name = settings.model or base_for(list(texts), Console(stderr=True))
    model = read_bi_encoder(find_model(name, BI_ENCODER_ORGANISATION), name)
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

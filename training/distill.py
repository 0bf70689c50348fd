"""The distill recipe: a student learns the scores that a teacher gives to the candidates of a query.

Teacher and student may each be a cross-encoder or a bi-encoder. Their scores are compared as logits: the
output of a cross-encoder before its sigmoid, and the cosine of a bi-encoder divided by the temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from rich.console import Console
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.cross_encoder.training_args import CrossEncoderTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from transformers import set_seed
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.models.fast_tokenizer import Pair, TokenizedText
from training.base_models import with_base
from training.bi_encoder_run import DOCUMENT, QUERY, BiEncoderTask, pair_dataset, train_bi_encoder
from training.data_report import TrainingRow, report_data
from training.evaluation.scorers import (
    CrossEncoderSystem,
    ModelSystem,
    load_model_system,
    run_in_batches,
)
from training.evaluators import SPEARMAN, CosineEvaluator, ScoreEvaluator
from training.examples import CandidateList, ScoredPair, read_candidate_lists, read_scored_pairs
from training.fit import RunResult, SelectionMetric, fit, training_arguments
from training.labels import UNIT_RANGE
from training.model_builder import BiEncoderSettings, build_bi_encoder, build_cross_encoder
from training.regression import finish_cross_encoder, logit, sample_pair_scores
from training.settings import MixOption, parse_mix
from training.trainers import (
    LengthSortedBatchSampler,
    RegressionTrainer,
    ScaledLoss,
    TrainingPart,
    data_arguments,
    mix_arguments,
)

LossName: TypeAlias = Literal["margin-mse", "kl", "mse"]

_METRIC = SelectionMetric(SPEARMAN)
# Of the candidates that fill up a short list; they count for nothing.
_MISSING = float("nan")
# Without a teacher the positives share the softmax, and a negative has none of it: exp(-1e4) is 0.
_RIGHT, _WRONG = 0.0, -1e4


@dataclass(frozen=True, kw_only=True)
class DistillSettings(BiEncoderSettings):
    """Options of the distill recipe."""

    train: Annotated[
        list[Path], Option(help="File of pairs with labels 0..1, to learn too. Can be repeated.")
    ] = field(default_factory=list)
    candidates: Annotated[
        list[Path],
        Option(help="File of triples, or of lists as JSON lines with query, pos and neg. Can be repeated."),
    ] = field(default_factory=list)
    labelled_lists: Annotated[
        list[Path],
        Option(
            help="File of triples or lists to learn without a teacher: positives above negatives (softmax)."
            " Can be repeated."
        ),
    ] = field(default_factory=list)
    teacher: Annotated[str, Option(help="Cross-encoder or bi-encoder that scores the candidates.")] = ""
    teacher_scores: Annotated[
        list[Path], Option(help="File of query, text and score, instead of a teacher. Can be repeated.")
    ] = field(default_factory=list)
    student: Annotated[
        Literal["cross-encoder", "bi-encoder"], Option(help="The kind of the model to train.")
    ] = "cross-encoder"
    loss: Annotated[
        LossName,
        Option(
            help="What the student learns: the difference of the first candidate's score to each other's,"
            " the softmax over the candidates, or the scores."
        ),
    ] = "margin-mse"
    list_size: Annotated[
        int, Option(min=2, help="Candidates of a query in a row of a batch; longer lists are split.")
    ] = 8
    temperature: Annotated[
        float, Option(min=0.001, help="Cosines of bi-encoders are divided by it; 0.05 is a scale of 20.")
    ] = 0.05
    kl_temperature: Annotated[
        float, Option(min=0.001, help="Logits are divided by it before the softmax of kl.")
    ] = 1.0
    label_weight: Annotated[
        float, Option(min=0.0, help="Factor of the losses of labelled pairs and lists.")
    ] = 1.0
    both_orders: Annotated[bool, Option(help="Train on each labelled pair in both orders.")] = False
    mix: MixOption = ""
    max_length_tokens: Annotated[int, Option(min=8, help="Longer inputs are truncated.")] = 256

    @property
    def training_files(self) -> list[Path]:
        """The files of labelled pairs, candidates, labelled lists and a teacher's scores."""
        return [*self.train, *self.candidates, *self.labelled_lists, *self.teacher_scores]

    def check(self) -> None:
        """Validate before any data is read.

        Raises:
            InvalidInput: as for every bi-encoder; or there is nothing to learn, one of candidates and
                teacher is missing, or a cross-encoder has a pooling.
        """
        super().check()
        if not self.training_files:
            raise InvalidInput.of_field(
                "candidates", "give --candidates with a --teacher, or --teacher-scores"
            )
        if bool(self.candidates) != bool(self.teacher):
            raise InvalidInput.of_field("teacher", "--candidates and --teacher need each other")
        if self.student == "cross-encoder" and self.pooling != "base":
            raise InvalidInput.of_field("pooling", "a cross-encoder has none: use base")
        parse_mix(self.mix, len(self.training_files))


@dataclass(frozen=True)
class ScoredList:
    """A query, and its candidates with the teacher's logits. The first one is a positive or the best."""

    query: str
    texts: tuple[str, ...]
    logits: tuple[float, ...]

    def split(self, size: int) -> list[ScoredList]:
        """Lists of at most `size` candidates, the first of which is the same in all of them."""
        rest = list(zip(self.texts[1:], self.logits[1:], strict=True))
        chunks = [rest[start : start + size - 1] for start in range(0, len(rest), size - 1)] or [[]]
        return [
            ScoredList(
                self.query,
                (self.texts[0], *(text for text, _ in chunk)),
                (self.logits[0], *(score for _, score in chunk)),
            )
            for chunk in chunks
        ]


@dataclass(frozen=True)
class _ListFile:
    """The lists of a file. Without a teacher, their logits are of labels."""

    lists: Sequence[ScoredList]
    has_teacher: bool


@dataclass(frozen=True)
class _Files:
    """The labelled pairs of each file, and the lists of each file, in the order of the options."""

    pairs: Sequence[Sequence[ScoredPair]]
    lists: Sequence[_ListFile]

    @property
    def mean_teacher_logit(self) -> float:
        """0 without a teacher."""
        lists = [one for of_file in self.lists if of_file.has_teacher for one in of_file.lists]
        return float(np.mean([logit for one in lists for logit in one.logits])) if lists else 0.0


def train_distill(settings: DistillSettings, console: Console) -> RunResult:
    """Train a cross-encoder or a bi-encoder to score as a teacher does, and on labelled pairs if given.

    The dev and held-out files hold pairs with a score from 0 to 1.
    """
    settings.check()
    files = _read_files(settings, console)
    rows = [
        *(TrainingRow((one.first, one.second), f"{one.score:g}") for pairs in files.pairs for one in pairs),
        *(TrainingRow((one.query, *one.texts)) for of_file in files.lists for one in of_file.lists),
    ]
    settings = with_base(settings, rows, console)
    set_seed(settings.seed)
    train = _train_bi_encoder if settings.student == "bi-encoder" else _train_cross_encoder
    return train(settings, files, rows, console)


def _train_cross_encoder(
    settings: DistillSettings, files: _Files, rows: Sequence[TrainingRow], console: Console
) -> RunResult:
    scores = [pair.score for pairs in files.pairs for pair in pairs]
    model = build_cross_encoder(
        settings,
        settings.base,
        activation=nn.Sigmoid(),
        dropout=settings.dropout or 0.0,
        adapter_rank=settings.adapter_rank,
        mean_label=logit(float(np.mean(scores))) if scores else files.mean_teacher_logit,
        start_adapter=settings.start_adapter,
        freeze_embeddings=settings.freeze_embeddings,
    )
    report = report_data(settings, rows, model.tokenizer, console)
    parts = _parts(
        settings,
        files,
        lambda name, temperature: CrossEncoderDistillLoss(model, name, temperature),
        BinaryCrossEntropyLoss(model),
    )
    trainer = RegressionTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            **training_arguments(settings, _METRIC),
            **mix_arguments(parse_mix(settings.mix, len(parts))),
            batch_sampler=LengthSortedBatchSampler,
        ),
        **data_arguments(parts),
        evaluator=_score_evaluator(settings.dev, settings) if settings.dev else None,
    )
    sample = [
        *(one for pairs in files.pairs for one in pairs),
        *(
            ScoredPair(one.query, text, 1.0)
            for of_file in files.lists
            for one in of_file.lists
            for text in one.texts
        ),
    ]
    outcome = fit(
        trainer, settings, _METRIC, console, lambda: sample_pair_scores(model, sample, settings.seed)
    )
    return finish_cross_encoder(
        "distill",
        trainer,
        model,
        settings,
        report,
        None,
        lambda path: _score_evaluator(path, settings),
        outcome,
    )


def _score_evaluator(path: Path, settings: DistillSettings) -> ScoreEvaluator:
    return ScoreEvaluator(read_scored_pairs(path, settings.pair_format, settings.range), UNIT_RANGE)


def _train_bi_encoder(
    settings: DistillSettings, files: _Files, rows: Sequence[TrainingRow], console: Console
) -> RunResult:
    model = build_bi_encoder(settings)
    report = report_data(settings, rows, model.tokenizer, console)
    parts = _parts(
        settings,
        files,
        lambda name, temperature: BiEncoderDistillLoss(model, name, temperature, settings.temperature),
        CoSENTLoss(model),
    )
    task = BiEncoderTask(
        recipe="distill",
        settings=settings,
        report=report,
        model=model,
        parts=parts,
        evaluator_of=lambda path: CosineEvaluator(
            read_scored_pairs(path, settings.pair_format, settings.range), settings.matryoshka_dimensions
        ),
        metric=SPEARMAN,
        shares=parse_mix(settings.mix, len(parts)),
    )
    return train_bi_encoder(task, settings.learning_rate, console)


def _parts(
    settings: DistillSettings,
    files: _Files,
    list_loss: Callable[[LossName, float], nn.Module],
    pair_loss: nn.Module,
) -> list[TrainingPart]:
    """The files in the order of the options. `list_loss` makes a loss of a name and a temperature."""
    pair_loss = ScaledLoss(pair_loss, settings.label_weight)
    label_loss = ScaledLoss(list_loss("kl", 1.0), settings.label_weight)
    teacher_loss = list_loss(settings.loss, settings.kl_temperature)
    return [
        *(
            TrainingPart(pair_dataset(pairs, [one.score for one in pairs]), pair_loss)
            for pairs in files.pairs
        ),
        *(
            TrainingPart(list_dataset(one.lists), teacher_loss if one.has_teacher else label_loss)
            for one in files.lists
        ),
    ]


def list_dataset(lists: Sequence[ScoredList]) -> Dataset:
    """Columns of the query and of each candidate; the label is a row of logits, NaN where a text lacks."""
    width = max(len(one.texts) for one in lists)
    texts = [one.texts + ("",) * (width - len(one.texts)) for one in lists]
    columns: dict[str, Any] = {QUERY: [one.query for one in lists]}
    names = [DOCUMENT, *(f"candidate{number}" for number in range(2, width + 1))]
    columns |= {name: list(column) for name, column in zip(names, zip(*texts, strict=True), strict=True)}
    columns["label"] = [[*one.logits, *[_MISSING] * (width - len(one.logits))] for one in lists]
    return Dataset.from_dict(columns)


def _read_files(settings: DistillSettings, console: Console) -> _Files:
    """All training files. The teacher scores the candidates."""
    file_format = settings.file_format
    pairs = [read_scored_pairs(path, settings.pair_format, settings.range) for path in settings.train]
    if settings.both_orders:
        pairs = [
            [*of_file, *(replace(one, first=one.second, second=one.first) for one in of_file)]
            for of_file in pairs
        ]
    system = load_model_system(settings.teacher, settings.device) if settings.candidates else None
    files = []
    for path in settings.candidates:
        lists = read_candidate_lists(path, file_format)
        candidates = [(one.query, text) for one in lists for text in (*one.positives, *one.negatives)]
        console.print(f"{settings.teacher} scores {len(candidates):,} candidates")
        logits = iter(teacher_logits(cast("ModelSystem", system), candidates, settings.temperature).tolist())
        scored = [
            _with_logits(one, [next(logits) for _ in (*one.positives, *one.negatives)]) for one in lists
        ]
        files.append(_short_lists(scored, path, settings, has_teacher=True))
    for path in settings.labelled_lists:
        labelled = [
            _with_logits(one, [_RIGHT] * len(one.positives) + [_WRONG] * len(one.negatives))
            for one in read_candidate_lists(path, file_format)
        ]
        files.append(_short_lists(labelled, path, settings, has_teacher=False))
    for path in settings.teacher_scores:
        scored = _lists_of_scores(read_scored_pairs(path, settings.pair_format, score_range=None))
        files.append(_short_lists(scored, path, settings, has_teacher=True))
    return _Files(pairs, files)


def _with_logits(candidates: CandidateList, logits: Sequence[float]) -> ScoredList:
    return ScoredList(candidates.query, (*candidates.positives, *candidates.negatives), tuple(logits))


def _short_lists(
    lists: Sequence[ScoredList], path: Path, settings: DistillSettings, *, has_teacher: bool
) -> _ListFile:
    """Split long lists, and drop those from which the loss learns nothing."""
    short = [part for one in lists for part in one.split(settings.list_size)]
    if settings.loss != "mse" or not has_teacher:
        # One candidate has no margin, and its softmax is 1.
        short = [one for one in short if len(one.texts) > 1]
    if not short:
        raise InvalidInput.of_field(str(path), "no query has two candidates")
    return _ListFile(short, has_teacher)


def _lists_of_scores(scores: Iterable[ScoredPair]) -> list[ScoredList]:
    """The texts of each query, best first."""
    found: dict[str, dict[str, float]] = {}
    for one in scores:
        found.setdefault(one.first, {})[one.second] = one.score
    return [
        ScoredList(query, tuple(ordered), tuple(texts[text] for text in ordered))
        for query, texts in found.items()
        for ordered in [sorted(texts, key=texts.__getitem__, reverse=True)]
    ]


def teacher_logits(system: ModelSystem, pairs: Sequence[Pair], temperature: float) -> NDArray[np.float32]:
    """The teacher's logits in the order of the pairs: (count,).

    Raises:
        UnusableModel: the teacher returned values that are not finite.
    """
    if isinstance(system, CrossEncoderSystem):
        model = system.model

        def forward(batch: Sequence[TokenizedText]) -> NDArray[np.float32]:
            return model.score(batch)[1][:, np.newaxis]

        return run_in_batches(model.tokenize_pairs(pairs), forward)[:, 0]
    first = system.embed([query for query, _ in pairs], is_query=True)
    second = system.embed([text for _, text in pairs], is_query=False)
    logits: NDArray[np.float32] = (first * second).sum(axis=1) / np.float32(temperature)
    return logits


class CrossEncoderDistillLoss(nn.Module):
    """`distill_loss` of the logits of a cross-encoder, for batches of `list_dataset`."""

    def __init__(self, model: CrossEncoder, name: LossName, kl_temperature: float) -> None:
        super().__init__()
        self.model = model
        self._name = name
        self._kl_temperature = kl_temperature

    def forward(
        self,
        inputs: Sequence[Sequence[str]],
        labels: Sequence[Tensor],
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """The loss of a batch. Candidates without a label are not scored."""
        teacher = torch.stack(list(labels)).to(self.model.device)  # (query, candidate)
        is_known = ~teacher.isnan()
        queries, *candidates = inputs
        known_rows, known_columns = (positions.tolist() for positions in is_known.nonzero(as_tuple=True))
        pairs = [
            (queries[row], candidates[column][row])
            for row, column in zip(known_rows, known_columns, strict=True)
        ]
        features = batch_to_device(self.model.preprocess(pairs, prompt=prompt, task=task), teacher.device)
        scores = self.model(features)["scores"].view(-1).float()
        student = torch.zeros_like(teacher, dtype=scores.dtype).masked_scatter(is_known, scores)
        return distill_loss(self._name, student, teacher, self._kl_temperature)


class BiEncoderDistillLoss(nn.Module):
    """`distill_loss` of the scaled cosines of a bi-encoder, for batches of `list_dataset`."""

    def __init__(
        self, model: SentenceTransformer, name: LossName, kl_temperature: float, temperature: float
    ) -> None:
        super().__init__()
        self.model = model
        self._name = name
        self._kl_temperature = kl_temperature
        self._temperature = temperature

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of a batch."""
        query, *candidates = embed_columns(self.model, sentence_features)  # (query, dimension) each
        cosines = nn.functional.cosine_similarity(query[:, None], torch.stack(candidates, dim=1), dim=2)
        student = cosines.float() / self._temperature  # (query, candidate)
        return distill_loss(self._name, student, labels, self._kl_temperature)


def distill_loss(name: LossName, student: Tensor, teacher: Tensor, kl_temperature: float = 1.0) -> Tensor:
    """How far the student is from the teacher: a scalar, 0 if it does what the loss asks for.

    Args:
        name: `mse` compares the logits, `margin-mse` the difference of a row's first logit and each other,
            and `kl` the softmax of a row.
        student: (query, candidate) logits.
        teacher: the same; NaN where there is no candidate.
        kl_temperature: the logits are divided by it before the softmax.
    """
    is_known = ~teacher.isnan()
    teacher = teacher.nan_to_num()
    if name == "kl":
        # Minus infinity would make 0 · inf = NaN.
        logs, targets = (
            nn.functional.log_softmax((one / kl_temperature).masked_fill(~is_known, _WRONG), dim=1)
            for one in (student, teacher)
        )
        divergence = nn.functional.kl_div(logs, targets, reduction="batchmean", log_target=True)
        return divergence * kl_temperature**2
    errors = student - teacher
    if name == "margin-mse":
        errors, is_known = errors[:, :1] - errors[:, 1:], is_known[:, 1:]
    return (errors[is_known] ** 2).mean()

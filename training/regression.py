"""The regression recipe: a cross-encoder that reads a pair in one sequence and predicts its similarity.

A bi-encoder's weights have never seen two sentences in one sequence. Two things teach them to compare before
the few gold scores are used:

* The built-in pair scorer over the base model: training starts from its weights, if there is one.
* For other base models, a warm-up on pseudo-labelled pairs, if it is asked for: mined from plain sentences,
  labelled with the cosine of a bi-encoder. It is the base model, or a better one such as a siamese model
  trained on the same gold scores.

With `adapter_rank` above 0 a low-rank adapter is trained and saved; with 0 all weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sentence_transformers import CrossEncoder, util
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, MSELoss
from sentence_transformers.cross_encoder.training_args import CrossEncoderTrainingArguments
from transformers import set_seed
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.models.bi_encoder import read_bi_encoder
from textmatch.models.engines import AUTO
from textmatch.models.model_resolver import BI_ENCODER_ORGANISATION, find_model
from training.base_models import pair_scorer_over, with_base
from training.bi_encoder_run import pair_dataset
from training.data_report import DataReport, TrainingRow, report_data
from training.evaluators import SPEARMAN, ScoreEvaluator, embed
from training.examples import ScoredPair, read_scored_pairs, read_sentences
from training.fit import (
    FitOutcome,
    RunResult,
    SelectionMetric,
    finish_run,
    fit,
    has_checkpoint,
    training_arguments,
)
from training.labels import UNIT_RANGE, require_two_scores
from training.model_builder import (
    AdapterRankOption,
    BiEncoderSettings,
    build_cross_encoder,
)
from training.model_files import load_trained, save_cross_encoder
from training.settings import FreezeOption, PassesOption, RunSettings, with_length
from training.trainers import LengthSortedBatchSampler, RegressionTrainer

NO_ADAPTER = "none"
NEIGHBOURS_PER_SENTENCE = 48
RANDOM_PARTNERS_PER_SENTENCE = 16
# Pairs are drawn evenly from this many equal intervals of the cosine range 0..1.
COSINE_INTERVALS = 20
_METRIC = SelectionMetric(SPEARMAN)
_WARM_UP_BATCH_SIZE = 64
# Training pairs whose scores are checked for collapse.
_SAMPLE_PAIRS = 64
_PASSES = 4
# Peak learning rates of warm-up and training.
_ADAPTER_RATES = (5e-4, 2e-4)
_FULL_RATES = (1e-4, 3e-5)


@dataclass(frozen=True, kw_only=True)
class RegressionSettings(RunSettings):
    """Options of the regression recipe."""

    adapter_rank: AdapterRankOption = 0
    freeze_embeddings: FreezeOption = None
    start_adapter: Annotated[
        str,
        Option(
            help="Pair scorer, an adapter of the base model, to start from; none: the base itself. auto: the"
            " built-in one over this base if all weights are trained with a sigmoid."
        ),
    ] = AUTO
    loss: Annotated[
        Literal["mse", "bce"],
        Option(help="mse: squared error of the scores; bce: cross-entropy, for labels that are 0 or 1."),
    ] = "mse"
    sigmoid: Annotated[
        bool,
        Option(help="Whether the model ends in a sigmoid, or predicts scores in the range of the files."),
    ] = True
    both_orders: Annotated[
        bool, Option(help="Train on each pair in both orders, which doubles an epoch.")
    ] = False
    dropout: Annotated[float, Option(min=0.0, max=0.9, help="Dropout rate.")] = 0.0
    warm_up_pairs: Annotated[int, Option(min=0, help="Mined pairs to warm up on; 0: no warm-up.")] = 0
    warm_up_sentences: Annotated[
        list[Path], Option(help="File with more sentences to mine from. Can be repeated.")
    ] = field(default_factory=list)
    warm_up_labels: Annotated[
        str, Option(help="Bi-encoder whose cosine labels the warm-up pairs. Default: the base model.")
    ] = ""
    warm_up_learning_rate: Annotated[
        float, Option(min=0.0, help="0: 5e-4 for an adapter, 1e-4 for all weights.")
    ] = 0.0
    learning_rate: Annotated[float, Option(min=0.0, help="0: 2e-4 for an adapter, 3e-5 for all weights.")] = (
        0.0
    )
    epochs: PassesOption = 0
    max_length_tokens: Annotated[int, Option(min=8, help="Longer pairs are truncated.")] = 256

    @property
    def training_files(self) -> list[Path]:
        """The files of gold scores, and those of warm-up sentences."""
        return [*self.train, *(self.warm_up_sentences if self.warm_up_pairs else ())]

    def check(self) -> None:
        """Validate before any data is read.

        Raises:
            InvalidInput: as for every recipe, or an adapter or cross-entropy has no sigmoid.
        """
        super().check()
        if self.loss == "bce" and not self.sigmoid:
            raise InvalidInput.of_field("loss", "bce needs a sigmoid")
        if self.adapter_rank and not self.sigmoid:
            raise InvalidInput.of_field("no-sigmoid", "needs --adapter-rank 0: adapters have a sigmoid")


def train_regression(settings: RegressionSettings, console: Console) -> RunResult:
    """Train a cross-encoder on pairs with a score."""
    settings.check()
    pairs = [
        pair
        for path in settings.train
        for pair in read_scored_pairs(path, settings.pair_format, settings.range)
    ]
    require_two_scores((pair.score for pair in pairs), "Add pairs with other scores.")
    rows = [
        TrainingRow((pair.first, pair.second), f"{settings.range.denormalise(pair.score):g}")
        for pair in pairs
    ]
    settings = _with_base(_with_learning_rates(settings), rows, console)
    settings = with_length(settings, len(rows) * (1 + settings.both_orders), _PASSES, console)
    set_seed(settings.seed)
    model = _build(pairs, settings)
    sentences = _warm_up_sentences(pairs, settings)
    report = report_data(settings, rows, model.tokenizer, console, sentences)
    if settings.warm_up_pairs > 0 and not has_checkpoint(settings.checkpoints):
        _warm_up(model, sentences, settings, console)
    if settings.both_orders:
        pairs += [replace(pair, first=pair.second, second=pair.first) for pair in pairs]
    trainer = _trainer(model, pairs, settings)
    outcome = fit(
        trainer, settings, _METRIC, console, lambda: sample_pair_scores(model, pairs, settings.seed)
    )
    score_range = None if settings.sigmoid else settings.score_range
    return finish_cross_encoder(
        "regression",
        trainer,
        model,
        settings,
        report,
        score_range,
        lambda path: _evaluator(path, settings),
        outcome,
    )


def finish_cross_encoder(
    recipe: str,
    trainer: RegressionTrainer,
    model: CrossEncoder,
    settings: RegressionSettings | BiEncoderSettings,
    report: DataReport,
    score_range: tuple[float, float] | None,
    evaluator_of: Callable[[Path], ScoreEvaluator],
    outcome: FitOutcome,
) -> RunResult:
    """Save a trained cross-encoder, load it as it is served, evaluate it and write its card.

    `score_range` is that of the outputs of a model without sigmoid.
    """
    if trainer.is_world_process_zero():
        base_name = settings.base if settings.adapter_rank else ""
        save_cross_encoder(model, settings.output, score_range=score_range, adapter_base=base_name)
    base = find_model(settings.base, BI_ENCODER_ORGANISATION)
    saved = load_trained(settings.output, base, settings.torch_device)
    return finish_run(
        recipe,
        settings,
        report,
        measure=lambda path: evaluator_of(path).measure(saved),
        base_name=settings.base,
        outcome=outcome,
    )


def sample_pair_scores(model: CrossEncoder, pairs: Sequence[ScoredPair], seed: int) -> NDArray[np.float32]:
    """Scores of some of the pairs, and of their first sentences with the second ones of others: (count,)."""
    order = np.random.default_rng(seed).permutation(len(pairs))[:_SAMPLE_PAIRS]
    chosen = [pairs[at] for at in order]
    sample = {(one.first, other.second) for at, one in enumerate(chosen) for other in (one, chosen[at - 1])}
    return np.asarray(model.predict(sorted(sample), show_progress_bar=False), dtype=np.float32)


def _with_learning_rates(settings: RegressionSettings) -> RegressionSettings:
    warm_up, training = _ADAPTER_RATES if settings.adapter_rank else _FULL_RATES
    return replace(
        settings,
        warm_up_learning_rate=settings.warm_up_learning_rate or warm_up,
        learning_rate=settings.learning_rate or training,
    )


def _with_base(
    settings: RegressionSettings, rows: Sequence[TrainingRow], console: Console
) -> RegressionSettings:
    """The settings with a base model, and the pair scorer to start from or ""."""
    settings = with_base(settings, rows, console)
    if settings.start_adapter == NO_ADAPTER:
        return replace(settings, start_adapter="")
    if settings.start_adapter != AUTO:
        return settings
    start = "" if settings.adapter_rank or not settings.sigmoid else pair_scorer_over(settings.base)
    if start:
        console.print(
            f"starts from {start}, a pair scorer over {settings.base}; --start-adapter none starts without",
            highlight=False,
            soft_wrap=True,
        )
    return replace(settings, start_adapter=start)


def _build(pairs: Sequence[ScoredPair], settings: RegressionSettings) -> CrossEncoder:
    mean = float(np.mean([pair.score for pair in pairs]))
    return build_cross_encoder(
        settings,
        settings.base,
        activation=_activation(settings),
        dropout=settings.dropout,
        adapter_rank=settings.adapter_rank,
        mean_label=logit(mean) if settings.sigmoid else settings.range.denormalise(mean),
        start_adapter=settings.start_adapter,
        freeze_embeddings=settings.freeze_embeddings,
    )


def logit(share: float) -> float:
    """The number whose sigmoid is this, limited to the logits of 0.01 and 0.99."""
    limited = min(max(share, 0.01), 0.99)
    return math.log(limited / (1 - limited))


def _activation(settings: RegressionSettings) -> torch.nn.Module:
    return torch.nn.Sigmoid() if settings.sigmoid else torch.nn.Identity()


def _warm_up_sentences(pairs: Sequence[ScoredPair], settings: RegressionSettings) -> list[str]:
    """The sentences to mine from; none without a warm-up."""
    if not settings.warm_up_pairs:
        return []
    of_pairs = {text for pair in pairs for text in (pair.first, pair.second)}
    return sorted(of_pairs.union(*(read_sentences(path) for path in settings.warm_up_sentences)))


def _warm_up(
    model: CrossEncoder, sentences: Sequence[str], settings: RegressionSettings, console: Console
) -> None:
    """Train one epoch on mined pairs. Its checkpoints are kept apart from those of the main training.

    With a dev file, a warm-up after which the model is no better than before is undone.
    """
    output = settings.checkpoints / "warm-up"
    stage = replace(
        settings,
        output=output,
        dev=None,
        epochs=1,
        max_steps=0,
        lr_schedule="",
        patience=0,
        batch_size=_WARM_UP_BATCH_SIZE,
        learning_rate=settings.warm_up_learning_rate,
        resume=has_checkpoint(replace(settings, output=output).checkpoints),
    )
    labeller = settings.warm_up_labels or settings.base
    console.print(f"warm-up on {settings.warm_up_pairs:,} pairs labelled by {labeller}")
    bi_encoder = read_bi_encoder(find_model(labeller, BI_ENCODER_ORGANISATION), labeller)
    bi_encoder.to(settings.torch_device)
    embeddings = embed(bi_encoder.encode, sentences)  # (sentence, dimension)
    pairs = mine_warm_up_pairs(sentences, embeddings, settings.warm_up_pairs, settings.seed)
    if settings.dev is None:
        fit(_trainer(model, pairs, stage), stage, _METRIC, console)
        return
    evaluator = _evaluator(settings.dev, settings)
    before = evaluator.measure(model)[SPEARMAN]
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    fit(_trainer(model, pairs, stage), stage, _METRIC, console)
    after = evaluator.measure(model)[SPEARMAN]
    console.print(f"dev {SPEARMAN} {before:.4f} before the warm-up, {after:.4f} after it")
    if not after > before:
        console.print("the warm-up does not help this model: training starts without it", style="yellow")
        model.load_state_dict(weights)


def _trainer(
    model: CrossEncoder, pairs: Sequence[ScoredPair], settings: RegressionSettings
) -> RegressionTrainer:
    labels = [pair.score if settings.sigmoid else settings.range.denormalise(pair.score) for pair in pairs]
    return RegressionTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            **training_arguments(settings, _METRIC), batch_sampler=LengthSortedBatchSampler
        ),
        train_dataset=pair_dataset(pairs, labels),
        loss=(
            BinaryCrossEntropyLoss(model)
            if settings.loss == "bce"
            else MSELoss(model, activation_fn=_activation(settings))
        ),
        evaluator=_evaluator(settings.dev, settings) if settings.dev else None,
    )


def _evaluator(path: Path, settings: RegressionSettings) -> ScoreEvaluator:
    pairs = read_scored_pairs(path, settings.pair_format, settings.range)
    return ScoreEvaluator(pairs, UNIT_RANGE if settings.sigmoid else settings.range)


def mine_warm_up_pairs(
    sentences: Sequence[str], embeddings: NDArray[np.float32], count: int, seed: int
) -> list[ScoredPair]:
    """At most `count` distinct pairs, spread evenly over the cosine range, in random order and orientation.

    `embeddings` (sentence, dimension) holds one L2-normalised row per sentence. The label is the cosine,
    clipped to 0..1. Fewer pairs are returned only if the sentences do not have that many.
    """
    random = np.random.default_rng(seed)
    candidates = _candidate_pairs(embeddings, random)  # (pair, 2)
    cosines = (embeddings[candidates[:, 0]] * embeddings[candidates[:, 1]]).sum(axis=1).clip(0.0, 1.0)
    chosen = _spread_evenly(cosines, count, random)
    flipped = random.random(len(chosen)) < 0.5
    return [
        ScoredPair(sentences[second], sentences[first], float(cosine))
        if is_flipped
        else ScoredPair(sentences[first], sentences[second], float(cosine))
        for (first, second), cosine, is_flipped in zip(
            candidates[chosen].tolist(), cosines[chosen], flipped, strict=True
        )
    ]


def _candidate_pairs(embeddings: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.int64]:
    """Nearest neighbours for high cosines, random partners for low ones: (pair, 2)."""
    count = len(embeddings)
    rows = torch.from_numpy(embeddings)
    hits = util.semantic_search(rows, rows, top_k=min(NEIGHBOURS_PER_SENTENCE + 1, count))
    near = [(sentence, int(hit["corpus_id"])) for sentence, found in enumerate(hits) for hit in found]
    sentence_ids = np.repeat(np.arange(count), RANDOM_PARTNERS_PER_SENTENCE)
    far = np.stack([sentence_ids, random.integers(0, count, len(sentence_ids))], axis=1)
    pairs = np.sort(np.concatenate([np.array(near, dtype=np.int64).reshape(-1, 2), far]), axis=1)
    distinct: NDArray[np.int64] = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return distinct


def _spread_evenly(
    cosines: NDArray[np.float32], count: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Positions of at most `count` values, shuffled, as evenly over the intervals of 0..1 as possible."""
    interval_of = np.minimum((cosines * COSINE_INTERVALS).astype(np.int64), COSINE_INTERVALS - 1)
    intervals = sorted((np.flatnonzero(interval_of == number) for number in range(COSINE_INTERVALS)), key=len)
    chosen: list[NDArray[np.int64]] = []
    remaining = count
    # In order of size: the unused share of a small interval goes to the larger ones.
    for position, members in enumerate(intervals):
        share = min(len(members), remaining // (len(intervals) - position))
        chosen.append(random.choice(members, share, replace=False))
        remaining -= share
    return random.permutation(np.concatenate(chosen))

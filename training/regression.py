"""The regression recipe: a cross-encoder that reads a pair and says how similar it is.

1. Warm-up: pairs mined from sentences without scores, labelled with a bi-encoder's cosine: the base model's
   own, or that of a better one, such as a siamese model trained on the same gold scores.
2. Training on the gold scores.

With `adapter_rank` above 0 the base weights stay as they are and a low-rank adapter is trained and saved;
with 0 all weights are trained and an ordinary sentence-transformers directory is saved.

Warm-up pairs: mined from plain sentences and labelled by a bi-encoder, so that they cost no annotation.

A bi-encoder's weights have never seen two sentences in one sequence. Learning to reproduce the bi-encoder's
own cosine on many pairs teaches them to compare, before the few gold scores say what similarity is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from rich.console import Console
from sentence_transformers import CrossEncoder, util
from sentence_transformers.cross_encoder.losses import MSELoss
from sentence_transformers.cross_encoder.training_args import CrossEncoderTrainingArguments
from transformers import set_seed
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.models.bi_encoder import read_bi_encoder
from textmatch.models.model_resolver import BI_ENCODER_ORGANISATION, UnusableModel, find_model
from training.bi_encoder_run import DOCUMENT, QUERY
from training.data_report import TrainingRow, report_data
from training.evaluators import SPEARMAN, ScoreAgreement, embed
from training.fit import Goal, fit, has_checkpoint, training_arguments
from training.model_builder import DEFAULT_BASE_NAME, add_adapter, set_dropout
from training.model_files import load_trained, save_cross_encoder
from training.pairs import ScoredPair, ScoreRange, read_scored_pairs, read_sentences
from training.run_result import Outcome, finish
from training.settings import RunSettings
from training.trainers import LengthSortedBatchSampler, RegressionTrainer

NEIGHBOURS_PER_SENTENCE = 48
RANDOM_PARTNERS_PER_SENTENCE = 16
# Pairs are taken evenly from this many equal slices of the cosine range 0..1.
COSINE_SLICES = 20


def mine_warm_up_pairs(
    sentences: Sequence[str], embeddings: NDArray[np.float32], count: int, seed: int
) -> list[ScoredPair]:
    """At most `count` distinct pairs, spread evenly over the cosine range, in random order and orientation.

    `embeddings` (sentence, dimension) holds one L2-normalised row per sentence. The label is the cosine, with
    negative values raised to 0. Fewer pairs come back only if the sentences do not have that many.
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
    """Nearest neighbours for the upper end of the cosine range, random partners for the lower: (pair, 2)."""
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
    """Positions of at most `count` values, as evenly over the slices of 0..1 as they allow, shuffled."""
    slice_of = np.minimum((cosines * COSINE_SLICES).astype(np.int64), COSINE_SLICES - 1)
    slices = sorted((np.flatnonzero(slice_of == number) for number in range(COSINE_SLICES)), key=len)
    chosen: list[NDArray[np.int64]] = []
    left = count
    # The smallest slice comes first: what it cannot fill goes to the larger ones.
    for position, members in enumerate(slices):
        share = min(len(members), left // (len(slices) - position))
        chosen.append(random.choice(members, share, replace=False))
        left -= share
    return random.permutation(np.concatenate(chosen))


_GOAL = Goal(SPEARMAN)
_WARM_UP_BATCH_SIZE = 64
# Highest learning rates of the warm-up and of the training: of an adapter, and of all weights.
_ADAPTER_RATES = (5e-4, 2e-4)
_FULL_RATES = (1e-4, 3e-5)


@dataclass(frozen=True, kw_only=True)
class RegressionSettings(RunSettings):
    """Of the regression recipe."""

    base: Annotated[str, Option(help="Base model: a local directory or a name on the Hugging Face hub.")] = (
        DEFAULT_BASE_NAME
    )
    adapter_rank: Annotated[
        int, Option(min=0, help="Rank of the adapter to train and save; 0 trains and saves all weights.")
    ] = 0
    sigmoid: Annotated[
        bool,
        Option(help="Whether scores go through a sigmoid, or are said as the files have them."),
    ] = True
    score_range: Annotated[
        tuple[float, float], Option(help="Least and greatest score in the files, such as 0 5.")
    ] = (0.0, 1.0)
    both_orders: Annotated[
        bool, Option(help="Train on each pair in both orders, which doubles an epoch.")
    ] = False
    dropout: Annotated[float, Option(min=0.0, max=0.9, help="Dropout rate.")] = 0.0
    warm_up_pairs: Annotated[int, Option(min=0, help="Mined pairs to warm up on; 0 skips the warm-up.")] = (
        60_000
    )
    warm_up_sentences: Annotated[
        list[Path], Option(help="More files to mine from; labels are left out; may be given again.")
    ] = field(default_factory=list)
    warm_up_labels: Annotated[
        str, Option(help="Bi-encoder whose cosine labels the warm-up pairs; default: the base model.")
    ] = ""
    warm_up_learning_rate: Annotated[
        float, Option(min=0.0, help="0: 5e-4 for an adapter, 1e-4 for all weights.")
    ] = 0.0
    learning_rate: Annotated[float, Option(min=0.0, help="0: 2e-4 for an adapter, 3e-5 for all weights.")] = (
        0.0
    )
    epochs: Annotated[int, Option(min=1, help="Times that all data is seen.")] = 4
    max_length_tokens: Annotated[int, Option(min=8, help="Longest pair; what is longer is cut.")] = 256
    bf16: Annotated[bool, Option(help="Compute in bfloat16.")] = True

    @property
    def files_learnt_from(self) -> list[Path]:
        """The gold scores, and the sentences of the warm-up."""
        return [*self.train, *(self.warm_up_sentences if self.warm_up_pairs else ())]

    @property
    def range(self) -> ScoreRange:
        """Of the scores in the files."""
        return ScoreRange(*self.score_range)

    def check(self) -> None:
        """As for every recipe.

        Raises:
            InvalidInput: also if the range is empty, or an adapter is to go without sigmoid.
        """
        super().check()
        if not self.range.lowest < self.range.highest:
            raise InvalidInput.of_field("score-range", "the first number must be less than the second")
        if self.adapter_rank and not self.sigmoid:
            raise InvalidInput.of_field("no-sigmoid", "needs --adapter-rank 0: adapters have a sigmoid")


def train_regression(settings: RegressionSettings, console: Console) -> Outcome:
    """Train a cross-encoder on pairs with a score."""
    settings = _with_learning_rates(settings)
    settings.check()
    pairs = [
        pair for path in settings.train for pair in read_scored_pairs(path, settings.form, settings.range)
    ]
    rows = [TrainingRow((pair.first, pair.second), f"{settings.range.at(pair.score):g}") for pair in pairs]
    report = report_data(settings, rows, console)
    set_seed(settings.seed)
    base = find_model(settings.base, BI_ENCODER_ORGANISATION)
    model = _build(base, settings)
    if settings.warm_up_pairs > 0 and not has_checkpoint(settings.checkpoints):
        _warm_up(model, settings, console)
    if settings.both_orders:
        pairs += [replace(pair, first=pair.second, second=pair.first) for pair in pairs]
    trainer = _trainer(model, pairs, settings)
    fit(trainer, settings, _GOAL, console)
    if trainer.is_world_process_zero():
        save_cross_encoder(
            model,
            settings.output,
            base_name=settings.base,
            is_adapter=settings.adapter_rank > 0,
            score_range=None if settings.sigmoid else settings.score_range,
        )
    saved = load_trained(settings.output, base, settings.torch_device)
    return finish(
        "regression",
        settings,
        report,
        measure=lambda path: _evaluator(path, settings).measure(saved),
        base_name=settings.base,
    )


def _with_learning_rates(settings: RegressionSettings) -> RegressionSettings:
    warm_up, training = _ADAPTER_RATES if settings.adapter_rank else _FULL_RATES
    return replace(
        settings,
        warm_up_learning_rate=settings.warm_up_learning_rate or warm_up,
        learning_rate=settings.learning_rate or training,
    )


def _build(base: Path, settings: RegressionSettings) -> CrossEncoder:
    try:
        model: CrossEncoder = CrossEncoder(
            str(base),
            num_labels=1,
            max_length=settings.max_length_tokens,
            device=settings.torch_device,
            local_files_only=True,
            activation_fn=_activation(settings),
            # For sentences as short as these the plain form of attention is the faster one to train on a CPU.
            model_kwargs={"attn_implementation": "eager", "dtype": torch.float32},
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise UnusableModel(f'cannot train "{settings.base}" as a cross-encoder: {error}') from error
    set_dropout(model, settings.dropout)
    if settings.adapter_rank > 0:
        add_adapter(model, settings.adapter_rank, "SEQ_CLS", settings.base)
    return model


def _activation(settings: RegressionSettings) -> torch.nn.Module:
    return torch.nn.Sigmoid() if settings.sigmoid else torch.nn.Identity()


def _warm_up(model: CrossEncoder, settings: RegressionSettings, console: Console) -> None:
    """One epoch over the mined pairs; its own checkpoints stand beside those of the training."""
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
    files = settings.files_learnt_from
    sentences = sorted({sentence for path in files for sentence in read_sentences(path)})
    embeddings = embed(bi_encoder, sentences)  # (sentence, dimension)
    pairs = mine_warm_up_pairs(sentences, embeddings, settings.warm_up_pairs, settings.seed)
    fit(_trainer(model, pairs, stage), stage, _GOAL, console)


def _trainer(
    model: CrossEncoder, pairs: Sequence[ScoredPair], settings: RegressionSettings
) -> RegressionTrainer:
    labels = [pair.score if settings.sigmoid else settings.range.at(pair.score) for pair in pairs]
    columns = {
        QUERY: [pair.first for pair in pairs],
        DOCUMENT: [pair.second for pair in pairs],
        "label": labels,
    }
    trainer = RegressionTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            **training_arguments(settings, _GOAL), batch_sampler=LengthSortedBatchSampler
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=MSELoss(model, activation_fn=_activation(settings)),
        evaluator=_evaluator(settings.dev, settings) if settings.dev else None,
    )
    trainer.schedule = settings.schedule
    return trainer


def _evaluator(path: Path, settings: RegressionSettings) -> ScoreAgreement:
    pairs = read_scored_pairs(path, settings.form, settings.range)
    return ScoreAgreement(pairs, ScoreRange() if settings.sigmoid else settings.range)

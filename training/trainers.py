"""The libraries' trainers, extended by learning rate schedules and by classifiers in checkpoints.

Batches hold texts of similar length, which saves padding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoderTrainer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import DefaultBatchSampler, MultiDatasetDefaultBatchSampler
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Sampler
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, Trainer

from training.settings import LearningRateSchedule

# A pool of this many batches is sorted by length. A larger pool has less padding and less randomness.
BATCHES_PER_POOL = 32
# Passes over one dataset within an epoch get seeds that no epoch has.
_SEEDS_PER_PASS = 10_000
_CLASSIFIER = "classifier.safetensors"
# Arguments of losses with in-batch negatives: each text finds its partner among the texts of the other side.
BOTH_WAYS: dict[str, Any] = {
    "directions": ("query_to_doc", "doc_to_query"),
    "partition_mode": "per_direction",
}
# The label that transformers ignores in the loss.
_NOT_MASKED = -100
# Attributes of BERT, RoBERTa and XLM-R, ALBERT, DistilBERT.
_PREDICTION_HEADS = ("cls", "lm_head", "predictions", "vocab_transform")


@dataclass(frozen=True)
class TrainingPart:
    """A part of the training data, and the loss of its batches."""

    dataset: Dataset
    loss: Module


def data_arguments(parts: Sequence[TrainingPart]) -> dict[str, Any]:
    """The parts as arguments of a trainer. The batches of each part have texts of that part only."""
    if len(parts) == 1:
        return {"train_dataset": parts[0].dataset, "loss": parts[0].loss}
    named = {f"part {number}": part for number, part in enumerate(parts, start=1)}
    return {
        "train_dataset": {name: part.dataset for name, part in named.items()},
        "loss": {name: part.loss for name, part in named.items()},
    }


def mix_arguments(shares: Sequence[float]) -> dict[str, Any]:
    """The shares of the parts as training arguments; empty: shares of their sizes."""
    sampler = partial(MixedBatchSampler, shares=tuple(shares))
    return {"multi_dataset_batch_sampler": sampler} if len(shares) > 1 else {}


class ScaledLoss(Module):
    """A loss times a constant."""

    def __init__(self, loss: Module, factor: float) -> None:
        super().__init__()
        # The library replaces it in training on several GPUs.
        self.model = loss.model
        self._loss = loss
        self._factor = factor

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        """The value of the loss, times the factor."""
        return cast("Tensor", self._loss(*arguments, **options)) * self._factor


class ScheduledTrainer(Trainer):
    """Follows `schedule` if there is one, else the schedule of the training arguments."""

    schedule: LearningRateSchedule | None = None
    # Entered around an evaluation.
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Called by the library after steps or epochs; it may be interrupted."""
        with self.interruptible():
            metrics: dict[str, float] = super().evaluate(*arguments, **options)
        return metrics

    def evaluate_and_save(self) -> None:
        """Evaluate the model now, and save a checkpoint that competes for the best one."""
        metrics = self._evaluate(None, None, skip_scheduler=True)
        self._determine_best_metric(metrics, None)
        self._save_checkpoint(cast("Module", self.model), None)
        if self.state.best_global_step == 0:
            # The library takes step 0 for none.
            self.state.best_model_checkpoint = str(Path(self.args.output_dir or "") / "checkpoint-0")

    def save_interrupted(self) -> None:
        """Save a checkpoint of a training that was interrupted, from which it can be resumed."""
        self.control.should_training_stop = self.control.should_epoch_stop = False
        self._save_checkpoint(cast("Module", self.model), None)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Called by the library once per training."""
        if self.schedule is not None and self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(cast("Optimizer", optimizer or self.optimizer), self.schedule)
        scheduler: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
        return scheduler

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Does nothing: `training.model_card` writes the card."""


class MaskedLanguageModelTrainer(ScheduledTrainer):
    """For masked language models. Token probabilities are computed at masked positions only.

    With a small model and a large vocabulary, these are most of the work.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSortedSampler:
        # The library passes the dataset without the columns that the model does not read.
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        lengths = cast("Dataset", self.train_dataset)["length"]
        return LengthSortedSampler(lengths, batch_size, self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Mean cross-entropy of the masked tokens."""
        head = _prediction_head(self.accelerator.unwrap_model(model))
        if head is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        is_masked = inputs["labels"] != _NOT_MASKED  # (batch, length)
        inputs = {**inputs, "labels": inputs["labels"][is_masked]}  # (masked,)
        hook = head.register_forward_pre_hook(lambda _, hidden: hidden[0][is_masked])  # (masked, width)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            hook.remove()


def _prediction_head(model: PreTrainedModel) -> Module | None:
    """The module, or the first of several, that maps a token's last hidden state to vocabulary scores."""
    children = dict(model.named_children())
    return next((children[name] for name in _PREDICTION_HEADS if name in children), None)


class RegressionTrainer(ScheduledTrainer, CrossEncoderTrainer):
    """For cross-encoders."""


class BiEncoderTrainer(ScheduledTrainer, SentenceTransformerTrainer):
    """For bi-encoders. The classifier of a softmax loss is saved in each checkpoint."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        classifier = getattr(self.loss, "classifier", None)
        if classifier is not None:
            weights = {name: weight.contiguous() for name, weight in classifier.state_dict().items()}
            save_file(weights, Path(output_dir or self.args.output_dir or "") / _CLASSIFIER)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]
        super()._load_from_checkpoint(checkpoint_path)
        classifier = getattr(self.loss, "classifier", None)
        if classifier is not None:
            classifier.load_state_dict(load_file(Path(checkpoint_path) / _CLASSIFIER))


class RepeatableMasking(DataCollatorForLanguageModeling):
    """Masks tokens at random, the same ones whenever the same texts are in a batch.

    The order of batches depends on seed and epoch, so that a resumed run masks as an uninterrupted one.
    """

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Called by the data loader for each batch."""
        texts = repr([example["input_ids"] for example in examples])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(texts.encode()))
            batch: dict[str, Any] = super().torch_call(examples)
        return batch


def length_sorted_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Shuffle rows, sort pools of them by their length, and shuffle the batches: the rows of each batch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pool_size = batch_size * BATCHES_PER_POOL
    batches: list[list[int]] = []
    for start in range(0, len(order), pool_size):
        pool = sorted(order[start : start + pool_size], key=lengths.__getitem__)
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]


class LengthSortedSampler(Sampler[int]):
    """The rows of `length_sorted_batches` one after another. The order depends on seed and epoch only."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the library before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        batches = length_sorted_batches(self._lengths, self._batch_size, self._seed + self._epoch)
        # The short one would shift the others.
        for batch in sorted(batches, key=len, reverse=True):
            yield from batch


class LengthSortedBatchSampler(DefaultBatchSampler):
    """The batches of `length_sorted_batches`, by the length of the texts in characters.

    The order depends on the seed and the epoch only, so a resumed run continues in the same order.
    """

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, **options)
        texts = dataset.select_columns([name for name in dataset.column_names if name != "label"])
        self._lengths = [sum(map(len, row.values())) for row in texts]

    def __iter__(self) -> Iterator[list[int]]:
        yield from length_sorted_batches(self._lengths, self.batch_size, self.seed + self.epoch)


class MixedBatchSampler(MultiDatasetDefaultBatchSampler):
    """Draws the dataset of each batch at random, with the given shares.

    An epoch has as many batches as all datasets together. A dataset that ends before the epoch starts again
    in another order.
    """

    def __init__(self, dataset: Any, shares: Sequence[float], **options: Any) -> None:
        super().__init__(dataset, **options)
        self._shares = torch.tensor(shares, dtype=torch.float64)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.multinomial(self._shares, len(self), replacement=True, generator=generator)
        offsets = [0, *cast("Any", self.dataset).cumulative_sizes]
        batches = [self._endless(sampler) for sampler in self.batch_samplers]
        for number in drawn.tolist():
            yield [offsets[number] + row for row in next(batches[number])]

    def __len__(self) -> int:
        return sum(map(len, self.batch_samplers))

    def _endless(self, sampler: Any) -> Iterator[list[int]]:
        passes = 0
        while True:
            sampler.set_epoch(self.epoch + passes * _SEEDS_PER_PASS)
            yield from sampler
            passes += 1

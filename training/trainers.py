"""The libraries' trainers with what they lack: a learning rate by points, classifiers in checkpoints.

Batches of rows of similar length: little padding, and still another order in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoderTrainer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel, Trainer

from training.settings import LearningRateSchedule

_CLASSIFIER = "classifier.safetensors"
# A label that transformers leaves out of the loss.
_NOT_MASKED = -100
# Of BERT, RoBERTa and XLM-R, ALBERT, DistilBERT.
_PREDICTION_HEADS = ("cls", "lm_head", "predictions", "vocab_transform")


class _Scheduled(Trainer):
    schedule: LearningRateSchedule | None = None

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """By the points if there are some, else what the arguments say."""
        points = self.schedule
        if points is not None and self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(cast("Optimizer", optimizer or self.optimizer), points)
        scheduler: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
        return scheduler

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """The model card is written by us."""


class MaskedLanguageModelTrainer(_Scheduled):
    """For masked-language-model training; probabilities of all tokens are only computed where one is masked.

    With a small model over a large vocabulary, that is most of the work.
    """

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
    """What turns each token's last hidden state into scores of the vocabulary, or its first part."""
    children = dict(model.named_children())
    return next((children[name] for name in _PREDICTION_HEADS if name in children), None)


class RegressionTrainer(_Scheduled, CrossEncoderTrainer):
    """For cross-encoders."""


class BiEncoderTrainer(_Scheduled, SentenceTransformerTrainer):
    """For bi-encoders; the classifier of a softmax loss is part of each checkpoint."""

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


# So many batches are sorted by length among themselves; more means less padding and less chance.
BATCHES_PER_POOL = 32


class LengthSortedBatchSampler(DefaultBatchSampler):
    """Shuffles, sorts pools of rows by their length in characters, and shuffles the batches.

    The order follows from the seed and the number of the epoch, so that a resumed run goes on in it.
    """

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, **options)
        texts = dataset.select_columns([name for name in dataset.column_names if name != "label"])
        self._lengths = [sum(map(len, row.values())) for row in texts]

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool_size = self.batch_size * BATCHES_PER_POOL
        batches: list[list[int]] = []
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=self._lengths.__getitem__)
            batches += [pool[at : at + self.batch_size] for at in range(0, len(pool), self.batch_size)]
        for position in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[position]

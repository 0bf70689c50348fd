"""The libraries' trainers with what they lack: a learning rate by points, classifiers in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoderTrainer, SentenceTransformerTrainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer

from training.schedule import LearningRateSchedule

_CLASSIFIER = "classifier.safetensors"


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
    """For masked-language-model training."""


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

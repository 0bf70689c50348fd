"""Regression cross-encoder: pair -> one output -> sigmoid -> mean squared error against the gold score.

    python -m training regression --train train.tsv --dev dev.tsv --output DIRECTORY

1. Warm-up: pairs mined from sentences without scores, labelled with the base bi-encoder's own cosine.
2. Training on the gold scores.

With `adapter_rank` above 0 the base weights stay as they are and a low-rank adapter is trained and saved;
with 0 all weights are trained and an ordinary sentence-transformers directory is saved.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import MSELoss
from transformers import set_seed

from textmatch.errors import InvalidInput
from textmatch.models.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_adapter_directory,
    load_cross_encoder_directory,
)
from training.batches import LengthSortedBatchSampler
from training.evaluation.comparison import Comparison, compare, embed
from training.mining import mine_warm_up_pairs
from training.model_card import ModelCard, short_name, write_model_card
from training.pairs import ScoredPair, read_scored_pairs, read_sentences

_TOKENIZER_CONFIG = "tokenizer_config.json"
# What the tokenizer notes about the machine it was loaded on; a reader elsewhere must not be bound by it.
_LOCAL_TOKENIZER_KEYS = ("is_local", "local_files_only")

_ADAPTER_FORM = """\
The directory holds a rank-{rank} adapter (PEFT, float16 safetensors) with the scoring head; loading adds it
to the base weights."""
_FULL_FORM = "The directory holds all weights."
_LIMITS = """\
* It grades similarity of meaning as its training pairs do; whether a text answers a question is another
  matter.
* A pair is cut at {max_length_tokens} tokens. Lengths, languages and subjects that the training pairs do not
  cover are unmeasured.
* The two orders of a pair do not score the same; where that matters, score both and average."""


@dataclass(frozen=True)
class LearningRates:
    """Highest learning rate of the warm-up and of the training on gold scores."""

    warm_up: float
    training: float


ADAPTER_LEARNING_RATES = LearningRates(warm_up=5e-4, training=2e-4)
FULL_LEARNING_RATES = LearningRates(warm_up=1e-4, training=3e-5)


@dataclass(frozen=True)
class RegressionSettings:
    """Everything that decides the result; equal settings give equal weights on the same machine."""

    train: Path
    dev: Path
    output: Path
    base_name: str
    base: Path
    held_out: tuple[Path, ...] = ()
    warm_up_sentences: tuple[Path, ...] = ()
    data_note: str = ""
    adapter_rank: int = 32
    warm_up_pairs: int = 60_000
    warm_up_batch_size: int = 64
    epochs: int = 4
    batch_size: int = 32
    learning_rates: LearningRates = ADAPTER_LEARNING_RATES
    max_length_tokens: int = 256
    seed: int = 1
    bf16: bool = True
    device: str | None = None


def train_regression(settings: RegressionSettings) -> list[Comparison]:
    """Trains, saves with a model card, and measures what was saved on the dev and the held-out pairs."""
    if settings.output.is_dir() and any(settings.output.iterdir()):
        raise InvalidInput.of_field("output", f'directory "{settings.output}" is not empty')
    train_pairs = read_scored_pairs(settings.train)
    set_seed(settings.seed)
    bi_encoder = SentenceTransformer(str(settings.base), device=settings.device, local_files_only=True)
    model = CrossEncoder(
        str(settings.base),
        num_labels=1,
        max_length=settings.max_length_tokens,
        device=settings.device,
        local_files_only=True,
        # For sentences as short as these the plain form of attention is the faster one to train on a CPU.
        model_kwargs={"attn_implementation": "eager"},
        # A few epochs of a low-rank adapter do not need dropout, and it costs a fifth of a step.
        config_kwargs={"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
    )
    if settings.adapter_rank > 0:
        model.add_adapter(_adapter_config(settings.adapter_rank))

    if settings.warm_up_pairs > 0:
        files = (settings.train, *settings.warm_up_sentences)
        sentences = sorted({sentence for path in files for sentence in read_sentences(path)})
        embeddings = embed(bi_encoder, sentences)  # (sentence, dimension)
        warm_up = mine_warm_up_pairs(sentences, embeddings, settings.warm_up_pairs, settings.seed)
        _fit(model, warm_up, 1, settings.learning_rates.warm_up, settings.warm_up_batch_size, settings)
    _fit(model, train_pairs, settings.epochs, settings.learning_rates.training, settings.batch_size, settings)

    _save(model, settings)
    saved = load_trained(settings.output, settings.base, settings.device)
    comparisons = [compare(saved, bi_encoder, path) for path in (settings.dev, *settings.held_out)]
    write_model_card(_model_card(settings, comparisons), settings.output)
    return comparisons


def load_trained(directory: Path, base: Path, device: str | None = None) -> CrossEncoder:
    """A cross-encoder that this recipe has saved, in either form."""
    if is_adapter_directory(directory):
        return load_cross_encoder_directory(directory, base, device=device)
    model: CrossEncoder = CrossEncoder(str(directory), device=device, local_files_only=True)
    return model


def _adapter_config(rank: int) -> LoraConfig:
    # "dense" covers the output, both feed-forward layers and the pooler.
    return LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["query", "key", "value", "dense"],
        modules_to_save=["classifier"],
    )


def _fit(
    model: CrossEncoder,
    pairs: Sequence[ScoredPair],
    epochs: int,
    learning_rate: float,
    batch_size: int,
    settings: RegressionSettings,
) -> None:
    """One stage: linear warm-up over a tenth of the steps, then linear decay to 0."""
    dataset = Dataset.from_dict(
        {
            "sentence1": [pair.first for pair in pairs],
            "sentence2": [pair.second for pair in pairs],
            "label": [pair.score for pair in pairs],
        }
    )
    with tempfile.TemporaryDirectory() as checkpoints:
        arguments = CrossEncoderTrainingArguments(
            output_dir=checkpoints,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            batch_sampler=LengthSortedBatchSampler,
            seed=settings.seed,
            bf16=settings.bf16,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            logging_steps=100,
            dataloader_pin_memory=model.device.type == "cuda",
        )
        loss = MSELoss(model, activation_fn=torch.nn.Sigmoid())
        CrossEncoderTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss).train()


def _save(model: CrossEncoder, settings: RegressionSettings) -> None:
    model.save_pretrained(str(settings.output), create_model_card=False)
    _rewrite_json(settings.output / _TOKENIZER_CONFIG, dropped=_LOCAL_TOKENIZER_KEYS)
    if settings.adapter_rank > 0:
        _rewrite_json(settings.output / ADAPTER_CONFIG, base_model_name_or_path=settings.base_name)
        weights = settings.output / ADAPTER_WEIGHTS
        # Half precision halves the file; the dev figures are taken after it.
        save_file({name: tensor.half().contiguous() for name, tensor in load_file(weights).items()}, weights)


def _rewrite_json(path: Path, dropped: Sequence[str] = (), **changes: str) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in dropped}
    path.write_text(json.dumps(kept | changes, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _model_card(settings: RegressionSettings, comparisons: Sequence[Comparison]) -> ModelCard:
    rank = settings.adapter_rank
    return ModelCard(
        base_name=settings.base_name,
        form=_ADAPTER_FORM.format(rank=rank) if rank > 0 else _FULL_FORM,
        data_note=settings.data_note,
        limits=_limits(settings, comparisons),
        command=_command(settings),
        training_files=(settings.train, *settings.warm_up_sentences),
        comparisons=comparisons,
    )


def _limits(settings: RegressionSettings, comparisons: Sequence[Comparison]) -> str:
    lost = [
        short_name(compared.path)
        for compared in comparisons
        if compared.cosine.spearman > compared.cross_encoder.spearman
    ]
    limits = _LIMITS.format(max_length_tokens=settings.max_length_tokens)
    return limits + "".join(f"\n* On {name} the cosine of the base orders pairs better." for name in lost)


def _command(settings: RegressionSettings) -> str:
    """The command that makes this model again; files by name only, since their place differs by machine."""
    options = {
        "train": short_name(settings.train),
        "dev": short_name(settings.dev),
        "output": settings.output.name,
        "base": settings.base_name,
        "adapter-rank": settings.adapter_rank,
        "warm-up-pairs": settings.warm_up_pairs,
        "warm-up-learning-rate": settings.learning_rates.warm_up,
        "epochs": settings.epochs,
        "learning-rate": settings.learning_rates.training,
        "batch-size": settings.batch_size,
        "max-length-tokens": settings.max_length_tokens,
        "seed": settings.seed,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    for path in settings.warm_up_sentences:
        words += ["--warm-up-sentences", short_name(path)]
    for path in settings.held_out:
        words += ["--held-out", short_name(path)]
    if settings.data_note:
        words += ["--data-note", settings.data_note]
    if settings.device:
        words += ["--device", settings.device]
    words.append("--bf16" if settings.bf16 else "--no-bf16")
    return shlex.join(["python", "-m", "training", "regression", *words])

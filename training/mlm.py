"""The mlm recipe: a masked language model trained on raw text, from a base model or from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Annotated, Any

from datasets import Dataset
from rich.console import Console
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.models.model_resolver import BI_ENCODER_ORGANISATION, find_model
from training.base_models import with_base
from training.data_report import TrainingRow, build_report
from training.examples import read_sentences
from training.fit import RunResult, SelectionMetric, finish_run, fit, training_arguments
from training.settings import LearningRateOption, RunSettings
from training.trainers import MaskedLanguageModelTrainer, RepeatableMasking

# Longest input of a new model, in tokens.
_POSITIONS = 512
_METRIC = SelectionMetric("loss", is_greater_better=False)


@dataclass(frozen=True, kw_only=True)
class MlmSettings(RunSettings):
    """Options of the mlm recipe."""

    from_scratch: Annotated[
        bool, Option(help="Start a new BERT with random weights over the --vocab file.")
    ] = False
    vocab: Annotated[
        Path | None,
        Option(help="WordPiece vocabulary of a new model: one token per line, with [PAD], [UNK] and so on."),
    ] = None
    layers: Annotated[int, Option(min=1, help="Layers of a new model.")] = 4
    hidden: Annotated[int, Option(min=8, help="Width of a new model.")] = 256
    heads: Annotated[int, Option(min=1, help="Attention heads of a new model.")] = 4
    feed_forward: Annotated[
        int, Option(min=0, help="Inner width of a new model; 0: four times the width.")
    ] = 0
    lower_case: Annotated[bool, Option(help="Whether a new model's tokenizer lower-cases its input.")] = True
    mask_share: Annotated[float, Option(min=0.01, max=0.9, help="Share of the tokens to mask.")] = 0.15
    learning_rate: LearningRateOption = 1e-4


def train_mlm(settings: MlmSettings, console: Console) -> RunResult:
    """Train a model to predict masked tokens of raw text, as a base for the other recipes.

    Texts longer than --max-length-tokens are split.
    """
    settings.check()
    sentences = dict.fromkeys(
        text for path in settings.train for text in read_sentences(path, settings.file_format)
    )
    rows = [TrainingRow((text,)) for text in sentences]
    if not settings.from_scratch:
        settings = with_base(settings, rows, console)
    set_seed(settings.seed)
    model, tokenizer = _new_model(settings) if settings.from_scratch else _base_model(settings)
    evaluated = {
        path: [(text,) for text in read_sentences(path, settings.file_format)]
        for path in settings.evaluation_files
    }
    report = build_report(rows, evaluated, tokenizer)
    report.print_to(console)
    console.print(f"{model.num_parameters():,} parameters")
    length = min(settings.max_length_tokens, model.config.max_position_embeddings)

    def dataset_of(path: Path) -> Dataset:
        return _tokenized([text for (text,) in evaluated[path]], tokenizer, length)

    trainer = MaskedLanguageModelTrainer(
        model=model,
        args=TrainingArguments(
            **training_arguments(settings, _METRIC),
        ),
        train_dataset=_tokenized(list(sentences), tokenizer, length),
        eval_dataset=dataset_of(settings.dev) if settings.dev else None,
        data_collator=RepeatableMasking(tokenizer, mlm_probability=settings.mask_share),
        processing_class=tokenizer,
    )
    outcome = fit(trainer, settings, _METRIC, console)
    if trainer.is_world_process_zero():
        trainer.save_model(str(settings.output))
        (settings.output / "training_args.bin").unlink(missing_ok=True)

    def measure(path: Path) -> Mapping[str, float]:
        loss = trainer.evaluate(dataset_of(path))["eval_loss"]
        return {"loss": loss, "perplexity": exp(loss)}

    base_name = "" if settings.from_scratch else settings.base
    return finish_run("mlm", settings, report, measure, base_name, outcome)


def _new_model(settings: MlmSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if settings.vocab is None:
        raise InvalidInput.of_field("vocab", "--from-scratch needs a vocabulary file")
    if settings.hidden % settings.heads:
        raise InvalidInput.of_field("heads", f"--hidden {settings.hidden} must be a multiple of --heads")
    tokenizer = _new_tokenizer(settings.vocab, settings)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.feed_forward or 4 * settings.hidden,
        max_position_embeddings=_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config), tokenizer


def _new_tokenizer(vocab: Path, settings: MlmSettings) -> PreTrainedTokenizerBase:
    try:
        tokens = vocab.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.of_field(str(vocab), f"cannot be read: {error}") from error
    if missing := {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} - set(tokens):
        raise InvalidInput.of_field(str(vocab), f"lacks the tokens {', '.join(sorted(missing))}")
    tokenizer: PreTrainedTokenizerBase = BertTokenizer(
        vocab=str(vocab), do_lower_case=settings.lower_case, model_max_length=_POSITIONS
    )
    return tokenizer


def _base_model(settings: MlmSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    base = find_model(settings.base, BI_ENCODER_ORGANISATION)
    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    return AutoModelForMaskedLM.from_pretrained(str(base), local_files_only=True), tokenizer


def _tokenized(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    parts: Any = tokenizer(
        texts,
        truncation=True,
        max_length=length,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
    )
    return Dataset.from_dict(
        {
            "input_ids": parts["input_ids"],
            "special_tokens_mask": parts["special_tokens_mask"],
            "length": [len(ids) for ids in parts["input_ids"]],
        }
    )

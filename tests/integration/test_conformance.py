"""Every kind of model on every engine computes what sentence-transformers computes, or is refused.

A model is made once and loaded by each engine. Its texts are short, of the largest length that the model
reads, longer, and longer than its attention windows; each is computed alone and in company.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer

from tests.support.native_kernels import FORMS, kernel_library
from tests.support.tiny_models import BI_ENCODERS, CROSS_ENCODERS, WINDOW_TOKENS, TinyModel
from textmatch.models.bi_encoder import TorchBiEncoder, feed_lstm
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.models.engines import EngineConfig, decide_engine
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.model_resolver import UnusableModel
from textmatch.models.native import kernel
from textmatch.types import Truncation

ENGINES = ("sentence-transformers", "torch", "openvino", "native")
WORDS = ("the", "old", "cat", "sits", "under", "a", "blue", "tree", "where", "birds", "sing", "river", "runs")
# Of a unit vector's length, and of logits. In bfloat16, a cosine of 0.9995. Models whose rounding costs the
# library itself more may lose twice as much as it.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.03}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of models that were made already."""
    return {"": tmp_path_factory.mktemp("models")}


@pytest.fixture(autouse=True)
def _any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest form of the kernel that runs here."""
    if FORMS:
        monkeypatch.setattr(kernel, "LIBRARY", kernel_library(FORMS[0]))


def made(directories: dict[str, Path], kind: str, name: str, model: TinyModel) -> Path:
    key = f"{kind}-{name}"
    if key not in directories:
        model.make(directories[""] / key)
        directories[key] = directories[""] / key
    return directories[key]


def config_of(engine: str, cache: Path) -> EngineConfig:
    if engine == "sentence-transformers":
        return EngineConfig()
    dtype = "auto" if engine == "native" else "float32"
    return decide_engine(engine, device="cpu", dtype=dtype, threads=1, cache_directory=cache)


def words(count: int) -> str:
    return " ".join(WORDS[at * 5 % len(WORDS)] for at in range(count))


def texts(limit: int) -> list[str]:
    """Short, past a window, one token less than the limit, at the limit, past it; of no known word."""
    counts = (3, WINDOW_TOKENS + 9, limit - 3, limit - 2, limit - 1, 3 * limit)
    return ["a", *map(words, counts), "猫坐 zzz, Ünknown! 🙂", "x " * 2 * limit]


def pairs(limit: int) -> list[tuple[str, str]]:
    short, middle, *_, long, unknown, _ = texts(limit)[1:]
    return [
        (short, "the mat"), (short, middle), (middle, short), (short, long), (long, short), (long, long),
        (unknown, short), (words(limit // 2 - 2), words(limit - limit // 2 - 1)),
    ]  # fmt: skip


def check_engine(found: str, engine: str, model: TinyModel) -> None:
    if not model.packs:
        assert found == "sentence-transformers"
    elif engine == "native":
        assert found == ("native" if model.native else "torch")
    else:
        assert found == engine


@functools.cache
def reference(
    directory: Path, max_tokens: int, dtype: str = "float32", truncation_side: str = "right"
) -> SentenceTransformer:
    options = {"dtype": dtype}
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    if isinstance(model[0], Transformer) and max_tokens < model.max_seq_length:
        model.max_seq_length = max_tokens
    feed_lstm(model)
    if truncation_side != "right":
        model.tokenizer.truncation_side = truncation_side
    return model


@functools.cache
def pair_reference(
    directory: Path, max_tokens: int, dtype: str = "float32", truncation_side: str = "right"
) -> CrossEncoder:
    options = {"dtype": dtype}
    model = CrossEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    model.max_seq_length = min(max_tokens, model.max_seq_length)
    if truncation_side != "right":
        model.tokenizer.truncation_side = truncation_side
    return model


def library_outputs(model: CrossEncoder, wanted: list[tuple[str, str]]) -> np.ndarray:
    """Of each pair alone: (pairs, 1), or the probabilities of classes, (pairs, classes)."""
    rows = [model.predict([pair], activation_fn=torch.nn.Identity(), apply_softmax=True) for pair in wanted]
    return np.concatenate(rows).reshape(len(wanted), -1)


def own_outputs(model: TorchCrossEncoder, tokens: Sequence[TokenizedText]) -> np.ndarray:
    """The same: the raw score, or the probabilities of classes."""
    rows = model.outputs(tokens)
    return rows[:, 2:] if model.labels else rows[:, 1:]


def distances(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each row, in relation to the expected length: (count,)."""
    # A text of no known word may have the vector 0.
    return np.linalg.norm(found - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-12)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BI_ENCODERS)
def test_bi_encoders(name: str, engine: str, directories: dict[str, Path], tmp_path: Path):
    if engine == "native" and not FORMS:
        pytest.skip("no AMX and no C++ compiler")
    tiny = BI_ENCODERS[name]
    directory = made(directories, "bi", name, tiny)
    if refused := tiny.refused or (engine == ENGINES[0] and tiny.refused_unpacked):
        with pytest.raises(UnusableModel, match=refused):
            TorchBiEncoder.load(directory, name, config_of(engine, tmp_path))
        return
    model = TorchBiEncoder.load(directory, name, config_of(engine, tmp_path))
    check_engine(model.engine, engine, tiny)
    library = reference(directory, model.max_tokens)
    rounded = library if model.dtype == "float32" else reference(directory, model.max_tokens, model.dtype)
    wanted = texts(min(model.max_tokens, 100))
    for is_query, method in ((True, "encode_query"), (False, "encode_document")):
        expected = np.concatenate([getattr(library, method)([text]) for text in wanted])
        tolerance = TOLERANCES[model.dtype]
        if rounded is not library:
            by_library = np.concatenate([getattr(rounded, method)([text]) for text in wanted])
            tolerance = max(tolerance, 2 * distances(by_library, expected).max())
        tokens = model.tokenize(wanted, is_query=is_query)
        assert max(text.token_count for text in tokens) <= model.max_tokens
        together = model.outputs(tokens)
        check_rows(name, together, expected, tolerance)
        alone = np.concatenate([model.outputs([text]) for text in tokens])
        check_rows(name, alone, expected, tolerance)
        assert model.embed(tokens) == pytest.approx(unit(together), abs=1e-5)


@pytest.mark.parametrize("engine", ENGINES[:2])
@pytest.mark.parametrize("name", ["bert-mean", "modernbert", "qwen3-last-token", "qwen3-chat"])
def test_texts_cut_at_their_start(name: str, engine: str, directories: dict[str, Path], tmp_path: Path):
    directory = made(directories, "bi", name, BI_ENCODERS[name])
    model = TorchBiEncoder.load(directory, name, config_of(engine, tmp_path))
    library = reference(directory, model.max_tokens, truncation_side="left")
    wanted = texts(min(model.max_tokens, 100))
    for is_query, method in ((True, "encode_query"), (False, "encode_document")):
        expected = np.concatenate([getattr(library, method)([text]) for text in wanted])
        tokens = model.tokenize(wanted, is_query=is_query, truncation=Truncation.START)
        check_rows(name, model.outputs(tokens), expected, TOLERANCES["float32"])


@pytest.mark.parametrize("name", ["bert", "roberta-nli", "modernbert", "qwen3-chat-reranker"])
def test_pairs_cut_at_their_start(name: str, directories: dict[str, Path], tmp_path: Path):
    directory = made(directories, "cross", name, CROSS_ENCODERS[name])
    model = TorchCrossEncoder.load(directory, name, config_of("torch", tmp_path))
    library = pair_reference(directory, model.max_tokens, truncation_side="left")
    wanted = pairs(min(model.max_tokens, 100))
    expected = library_outputs(library, wanted)
    found = own_outputs(model, model.tokenize_pairs(wanted, truncation=Truncation.START))
    assert np.abs(found - expected).max() < TOLERANCES["float32"] * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", ["bert-mean", "qwen3-last-token", "qwen3-chat", "static", "words-lstm"])
def test_texts_to_be_refused_are_counted_whole(name: str, directories: dict[str, Path], tmp_path: Path):
    directory = made(directories, "bi", name, BI_ENCODERS[name])
    model = TorchBiEncoder.load(directory, name, config_of("torch", tmp_path), max_tokens=9)
    larger = TorchBiEncoder.load(directory, name, config_of("torch", tmp_path))
    wanted = [words(count) for count in (2, 6, 15)]
    counts = [text.token_count for text in larger.tokenize(wanted, is_query=False)]
    assert 9 < max(counts) < larger.max_tokens
    found = model.tokenize(wanted, is_query=False, truncation=Truncation.ERROR)
    assert [text.whole_count for text in found] == [count if count > 9 else None for count in counts]


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_leading_dimensions(engine: str, directories: dict[str, Path], tmp_path: Path):
    """Those of a Matryoshka model are cut and normalised again, as callers may ask the encoder to do."""
    name = "bert-matryoshka"
    directory = made(directories, "bi", name, BI_ENCODERS[name])
    model = TorchBiEncoder.load(directory, name, config_of(engine, tmp_path))
    library = reference(directory, model.max_tokens)
    wanted = texts(model.max_tokens)
    expected = unit(np.concatenate([library.encode_document([text], truncate_dim=12) for text in wanted]))
    found = model.embed(model.tokenize(wanted, is_query=False))[:, :12]
    check_rows(name, unit(found), expected, TOLERANCES["float32"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CROSS_ENCODERS)
def test_cross_encoders(name: str, engine: str, directories: dict[str, Path], tmp_path: Path):
    if engine == "native" and not FORMS:
        pytest.skip("no AMX and no C++ compiler")
    tiny = CROSS_ENCODERS[name]
    directory = made(directories, "cross", name, tiny)
    if tiny.refused:
        with pytest.raises(UnusableModel, match=tiny.refused):
            TorchCrossEncoder.load(directory, name, config_of(engine, tmp_path))
        return
    model = TorchCrossEncoder.load(directory, name, config_of(engine, tmp_path))
    check_engine(model.engine, engine, tiny)
    library, tolerance = pair_reference(directory, model.max_tokens), TOLERANCES[model.dtype]
    wanted = pairs(min(model.max_tokens, 100))
    expected = library_outputs(library, wanted)
    if model.dtype != "float32":
        by_library = library_outputs(pair_reference(directory, model.max_tokens, model.dtype), wanted)
        tolerance = max(tolerance, 2 * np.abs(by_library - expected).max() / max(1.0, np.abs(expected).max()))
    tokens = model.tokenize_pairs(wanted)
    scores, raw = model.score(tokens)
    assert np.abs(own_outputs(model, tokens) - expected).max() < tolerance * max(1.0, np.abs(expected).max())
    alone = np.concatenate([own_outputs(model, [pair]) for pair in tokens])
    assert np.abs(alone - expected).max() < tolerance * max(1.0, np.abs(expected).max())
    if model.labels:
        assert model.labels == tuple(library[0].model.config.id2label.values())
        position = 0 if "entailment" in model.labels else -1
        assert scores == pytest.approx(own_outputs(model, tokens)[:, position], abs=1e-5)
        assert 1 / (1 + np.exp(-raw)) == pytest.approx(scores, abs=1e-5)
    activated = expected if name.endswith("sigmoid") else None
    if activated is not None:
        assert np.abs(scores - library.predict(wanted)).max() < tolerance


def check_rows(name: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    errors = distances(found, expected)
    assert errors.max() < tolerance, f"{name}: {errors.round(4)}"


def test_the_suite_covers_many_kinds():
    served: Sequence[TinyModel] = [*BI_ENCODERS.values(), *CROSS_ENCODERS.values()]
    assert len(served) >= 50
    assert sum(not model.refused for model in served) >= 45

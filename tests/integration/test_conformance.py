"""Every kind of model on every engine computes what sentence-transformers computes, or is refused.

A model is made once and loaded by each engine. Its texts are short, of the largest length that the model
reads, longer, and longer than its attention windows; each is computed alone and in company.
"""

from __future__ import annotations

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
from textmatch.models.model_resolver import UnusableModel
from textmatch.models.native import kernel

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


def reference(directory: Path, max_tokens: int, dtype: str = "float32") -> SentenceTransformer:
    options = {"dtype": dtype}
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    if isinstance(model[0], Transformer) and max_tokens < model.max_seq_length:
        model.max_seq_length = max_tokens
    feed_lstm(model)
    return model


def pair_reference(directory: Path, max_tokens: int, dtype: str = "float32") -> CrossEncoder:
    options = {"dtype": dtype}
    model = CrossEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    model.max_seq_length = min(max_tokens, model.max_seq_length)
    return model


def raw_scores(model: CrossEncoder, wanted: list[tuple[str, str]]) -> np.ndarray:
    """Those of each pair alone."""
    return np.concatenate([model.predict([pair], activation_fn=torch.nn.Identity()) for pair in wanted])


def unit(rows: np.ndarray) -> np.ndarray:
    # A text of no known word may have the vector 0.
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
        expected = unit(np.concatenate([getattr(library, method)([text]) for text in wanted]))
        tolerance = TOLERANCES[model.dtype]
        if rounded is not library:
            by_library = unit(np.concatenate([getattr(rounded, method)([text]) for text in wanted]))
            tolerance = max(tolerance, 2 * np.linalg.norm(by_library - expected, axis=1).max())
        tokens = model.tokenize(wanted, is_query=is_query)
        assert max(text.token_count for text in tokens) <= model.max_tokens
        check_rows(name, model.embed(tokens), expected, tolerance)
        alone = np.concatenate([model.embed([text]) for text in tokens])
        check_rows(name, alone, expected, tolerance)


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
    expected = raw_scores(library, wanted)
    if model.dtype != "float32":
        by_library = raw_scores(pair_reference(directory, model.max_tokens, model.dtype), wanted)
        tolerance = max(tolerance, 2 * np.abs(by_library - expected).max() / max(1.0, np.abs(expected).max()))
    tokens = model.tokenize_pairs(wanted)
    scores, raw = model.score(tokens)
    assert np.abs(raw - expected).max() < tolerance * max(1.0, np.abs(expected).max())
    alone = np.concatenate([model.score([pair])[1] for pair in tokens])
    assert np.abs(alone - expected).max() < tolerance * max(1.0, np.abs(expected).max())
    activated = expected if name.endswith("sigmoid") else None
    if activated is not None:
        assert np.abs(scores - library.predict(wanted)).max() < tolerance


def check_rows(name: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    errors = np.linalg.norm(found - expected, axis=1)
    assert errors.max() < tolerance, f"{name}: {errors.round(4)}"


def test_the_suite_covers_many_kinds():
    served: Sequence[TinyModel] = [*BI_ENCODERS.values(), *CROSS_ENCODERS.values()]
    assert len(served) >= 50
    assert sum(not model.refused for model in served) >= 45

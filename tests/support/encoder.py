"""Tiny real models, and a real encoder in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.redis import free_port

if TYPE_CHECKING:
    from sentence_transformers.base.modules import Module

_WORDS = [
    "the", "a", "cat", "dog", "sits", "on", "mat", "runs", "in", "park", "query", "document",
    "what", "is", "where",
]  # fmt: skip
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-猫狗坐"
_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_START_SECONDS = 120.0
ENCODER_COMMAND = (sys.executable, "-m", "services.encoder")


def make_tiny_bi_encoder(
    path: Path,
    *,
    prompts: dict[str, str] | None = None,
    pools_prompt: bool = True,
    normalizes: bool = True,
    extra_modules: list[Module] | None = None,
    max_tokens: int = 64,
    seed: int = 11,
) -> Path:
    """A BERT of 2 layers and 32 dimensions with random weights, saved by sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertModel

    backbone = path.with_name(f"{path.name}-backbone")
    _save_backbone(backbone, BertModel, seed=seed)
    modules = [
        Transformer(str(backbone), max_seq_length=max_tokens),
        *(extra_modules or []),
        Pooling(32, "mean", include_prompt=pools_prompt),
        *([Normalize()] if normalizes else []),
    ]
    model = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    model.save(str(path), create_model_card=False)
    return path


def make_tiny_cross_encoder(
    path: Path, *, activation: str = "Sigmoid", label_count: int = 1, labels: Sequence[str] = ()
) -> Path:
    """A BERT of 2 layers and 32 dimensions with a random scoring head, saved by sentence-transformers.

    `labels` are the names of classes, which replace `label_count`.
    """
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification

    backbone = path.with_name(f"{path.name}-backbone")
    classes = list(labels) or [f"LABEL_{number}" for number in range(label_count)]
    _save_backbone(backbone, BertForSequenceClassification, id2label=dict(enumerate(classes)))
    model = CrossEncoder(str(backbone), device="cpu", activation_fn=getattr(torch.nn, activation)())
    model.save(str(path))
    return path


def start_encoder(environment: Mapping[str, str]) -> tuple[subprocess.Popen[str], str]:
    """Start `python -m services.encoder` on a free loopback port and wait until it is SERVING.

    Args:
        environment: `TEXTMATCH_*`; overrides the defaults of `spawn_encoder`.

    Returns:
        The process, which the caller ends, and its address.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = spawn_encoder({"TEXTMATCH_ENCODER_PORT": str(port), **environment}, stderr=log)
        try:
            wait_until_serving(process, address)
        except BaseException as error:
            process.kill()
            process.wait()
            log.seek(0)
            raise AssertionError(f"{error}; it wrote:\n{log.read()}") from error
    return process, address


def spawn_encoder(
    environment: Mapping[str, str],
    command: Sequence[str] = ENCODER_COMMAND,
    stderr: int | IO[str] = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start the encoder without waiting for it."""
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TEXTMATCH_ENCODER_THREADS": "1",
        "TEXTMATCH_ENCODER_METRICS_PORT": "0",
        "TEXTMATCH_LOG_LEVEL": "WARNING",
    }
    complete = {**os.environ, **defaults, **environment}
    return subprocess.Popen(command, env=complete, stderr=stderr, text=True)


def wait_until_serving(process: subprocess.Popen[str], address: str) -> None:
    """Return when health is SERVING; fail if the process ends or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while not is_serving(address):
        assert process.poll() is None, f"the encoder ended with status {process.returncode}"
        assert time.monotonic() < deadline, f"the encoder was not SERVING within {_START_SECONDS} s"
        time.sleep(0.05)


def is_serving(address: str) -> bool:
    """Whether its health service says SERVING; False while nothing listens."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _save_backbone(path: Path, model_class: type, *, seed: int = 11, **config: object) -> None:
    import torch
    from transformers import BertConfig, BertTokenizerFast

    path.mkdir(parents=True)
    continuations = [f"##{character}" for character in _CHARACTERS]
    vocabulary = [*_SPECIAL_TOKENS, *_WORDS, *_CHARACTERS, *continuations]
    vocabulary_file = path / "vocab.txt"
    vocabulary_file.write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(seed)
    bert_config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.2, **config,
    )  # fmt: skip
    model_class(bert_config).save_pretrained(str(path))
    BertTokenizerFast(vocab=str(vocabulary_file), model_max_length=128).save_pretrained(str(path))

"""Several encoders behind one matcher, as real processes."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path

from tests.support.encoder import make_tiny_bi_encoder
from tests.support.stack import Stack, running_stack, textmatch, wait_until
from textmatch.client import TextMatchClient

_CALLS = 40
_ENCODERS = ("encoder-1", "encoder-2")


def _encode_calls(stack: Stack, name: str) -> float:
    """How many calls of Encode a process has answered."""
    with urllib.request.urlopen(f"http://{stack.file['metrics'][name]}/metrics", timeout=10) as response:
        shown = response.read().decode()
    counted = re.findall(r'^textmatch_rpc_total{code="OK",method="Encode",.*} (.*)$', shown, re.MULTILINE)
    return sum(map(float, counted))


def test_two_encoders_share_the_calls_and_one_is_enough(tmp_path: Path):
    model = make_tiny_bi_encoder(tmp_path / "model")
    environment = {"TEXTMATCH_BI_ENCODER": str(model), "TEXTMATCH_CROSS_ENCODER": "none"}
    with running_stack(tmp_path / "data", environment, options=("--encoders", "2")) as stack:
        names = [process["name"] for process in stack.file["processes"]]
        own = ["redis"] if stack.qdrant else ["redis", "qdrant"]
        assert names == [*own, *_ENCODERS, "matcher", "gateway", "worker"]
        with stack.client() as client:
            wait_until(lambda: _both_are_connected(stack, client), "calls to both encoders")
            before = {name: _encode_calls(stack, name) for name in _ENCODERS}
            for _ in range(_CALLS):
                client.encode(["the cat"])
            shares = {name: _encode_calls(stack, name) - calls for name, calls in before.items()}
            assert sum(shares.values()) == _CALLS
            assert min(shares.values()) >= _CALLS // 4
            stack.kill("encoder-1")
            for _ in range(_CALLS):
                assert len(client.encode(["the dog"]).embeddings) == 1


def _both_are_connected(stack: Stack, client: TextMatchClient) -> bool:
    client.encode(["the cat"])
    return all(_encode_calls(stack, name) for name in _ENCODERS)


def test_gpus_that_are_not_there_are_refused_in_one_line(tmp_path: Path):
    refused = textmatch(
        *("up", "--data-dir", str(tmp_path), "--gpus", "2"), env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    )
    assert refused.returncode != 0
    assert refused.stderr.strip().splitlines() == ["textmatch: --gpus 2: 1 are visible on this machine"]


def test_no_gpus_and_gpus_beside_encoders_are_refused(tmp_path: Path):
    none = textmatch("up", "--data-dir", str(tmp_path), "--gpus", "0")
    both = textmatch("up", "--data-dir", str(tmp_path), "--gpus", "1", "--encoders", "2")
    assert none.returncode != 0
    assert "'--gpus': Input should be greater than or equal to 1" in none.stderr
    assert both.returncode != 0
    assert "omit --encoders" in both.stderr

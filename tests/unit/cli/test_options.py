from __future__ import annotations

import json
from pathlib import Path

import pytest

from textmatch.cli.errors import CommandFailed
from textmatch.cli.options import find_addresses


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a stack, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MATCHER_TARGET", "ENCODER_TARGET", "REDIS_URL", "INSTALLATION", "COLLECTION"):
        monkeypatch.delenv(f"TEXTMATCH_{variable}", raising=False)


def write_stack(directory: Path, port: int) -> Path:
    directory.mkdir()
    stack = {
        "matcher": f"127.0.0.1:{port}",
        "encoder": f"127.0.0.1:{port + 1}",
        "redis_url": f"redis://127.0.0.1:{port + 2}/0",
        "qdrant_url": f"http://127.0.0.1:{port + 3}",
        "installation": f"stack-{port}",
        "supervisor_pid": 1,
        "processes": [{"name": "redis", "pid": 2, "address": f"127.0.0.1:{port + 2}"}],
    }
    (directory / "stack.json").write_text(json.dumps(stack))
    return directory


def test_defaults_when_nothing_is_said():
    addresses = find_addresses(None)
    assert (addresses.matcher, addresses.encoder) == ("127.0.0.1:50052", "127.0.0.1:50051")
    assert addresses.redis_url == "redis://127.0.0.1:6379/0"
    assert addresses.processes == ()
    assert (addresses.installation, addresses.collection) == ("textmatch", "default")


def test_the_collection_is_that_of_the_option_or_else_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEXTMATCH_COLLECTION", "faq")
    assert find_addresses(None).collection == "faq"
    assert find_addresses(None, collection="manuals").collection == "manuals"


def test_the_stack_nearby_is_found():
    write_stack(Path(".textmatch"), 7000)
    addresses = find_addresses(None)
    assert (addresses.matcher, addresses.encoder) == ("127.0.0.1:7000", "127.0.0.1:7001")
    assert addresses.redis_url == "redis://127.0.0.1:7002/0"
    assert [process.name for process in addresses.processes] == ["redis"]
    assert addresses.installation == "stack-7000"


def test_the_environment_goes_before_the_stack_nearby(monkeypatch: pytest.MonkeyPatch):
    write_stack(Path(".textmatch"), 7000)
    monkeypatch.setenv("TEXTMATCH_MATCHER_TARGET", "far:1")
    addresses = find_addresses(None)
    assert (addresses.matcher, addresses.encoder) == ("far:1", "127.0.0.1:7001")
    assert addresses.processes == ()


def test_a_stack_that_was_asked_for_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch):
    write_stack(Path(".textmatch"), 7000)
    monkeypatch.setenv("TEXTMATCH_MATCHER_TARGET", "far:1")
    assert find_addresses(write_stack(Path("other"), 8000)).matcher == "127.0.0.1:8000"


def test_an_option_goes_before_everything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEXTMATCH_ENCODER_TARGET", "far:1")
    addresses = find_addresses(
        write_stack(Path("other"), 8000), encoder="mine:2", redis_url="redis://mine:3/0"
    )
    assert (addresses.matcher, addresses.encoder) == ("127.0.0.1:8000", "mine:2")
    assert addresses.redis_url == "redis://mine:3/0"


def test_a_folder_without_a_stack_is_an_error_if_it_was_asked_for():
    with pytest.raises(CommandFailed, match="no stack runs in other; start it with: textmatch up"):
        find_addresses(Path("other"))


@pytest.mark.parametrize("content", ["{", "{}", '{"processes": [{"name": 1}]}'])
def test_a_broken_stack_file_is_named(content: str):
    Path(".textmatch").mkdir()
    Path(".textmatch/stack.json").write_text(content)
    with pytest.raises(CommandFailed, match=r"\.textmatch/stack\.json cannot be read"):
        find_addresses(None)

from __future__ import annotations

from pathlib import Path

import pytest

from textmatch.errors import ModelNotFound
from textmatch.models import model_resolver
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    CROSS_ENCODER_ORGANISATION,
    UnusableModel,
    adapter_base_name,
    check_pinned,
    find_model,
    is_cross_encoder_adapter,
)


def _find(name: str) -> Path:
    return find_model(name, BI_ENCODER_ORGANISATION)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_mini_lm_comes_from_its_package(name: str):
    directory = _find(name)
    assert (directory / "model.safetensors").is_file()
    assert (directory / "modules.json").is_file()


@pytest.mark.parametrize(
    ("name", "base", "reads_pairs"),
    [
        ("textmatch-bi-encoder", "multilingual-e5-small", False),
        ("textmatch-cross-encoder", "multilingual-e5-small", True),
        ("textmatch-bi-encoder-en", "sentence-transformers/all-MiniLM-L6-v2", False),
        ("textmatch-cross-encoder-en", "sentence-transformers/all-MiniLM-L6-v2", True),
    ],
)
def test_adapters_are_shipped(name: str, base: str, reads_pairs: bool):
    directory = _find(name)
    assert adapter_base_name(directory) == base
    assert is_cross_encoder_adapter(directory) == reads_pairs
    assert (directory / "README.md").is_file()


@pytest.mark.parametrize(
    ("name", "organisation", "repository", "revision"),
    [
        ("BAAI/bge-small-zh-v1.5@7999e1d", BI_ENCODER_ORGANISATION, "BAAI/bge-small-zh-v1.5", "7999e1d"),
        ("BAAI/bge-small-zh-v1.5", BI_ENCODER_ORGANISATION, "BAAI/bge-small-zh-v1.5", None),
        ("ms-marco@refs/pr/1", CROSS_ENCODER_ORGANISATION, "cross-encoder/ms-marco", "refs/pr/1"),
    ],
)
def test_a_hub_name_may_have_a_revision(
    name: str,
    organisation: str,
    repository: str,
    revision: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(tmp_path)

    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(model_resolver, "snapshot_download", snapshot_download)
    assert find_model(name, organisation) == tmp_path
    assert asked == [(repository, revision)]


def test_a_local_directory_is_itself(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    assert _find(str(tmp_path)) == tmp_path.resolve()


def test_an_unknown_name_says_where_it_was_looked_for():
    with pytest.raises(ModelNotFound) as caught:
        _find("no-such-model")
    message = str(caught.value)
    assert 'no model "no-such-model"' in message
    assert '"sentence-transformers/no-such-model"' in message
    assert caught.value.resource_name == "no-such-model"
    assert "\n" not in message


@pytest.mark.parametrize("name", ["", "a/b/c", "../nowhere", "no such\nmodel"])
def test_a_name_that_the_hub_refuses_is_not_found_either(name: str):
    with pytest.raises(ModelNotFound):
        _find(name)


def test_pickle_alone_is_refused(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UnusableModel, match="pickle"):
        _find(str(tmp_path))


def test_a_module_that_is_pickle_alone_is_refused(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    dense = tmp_path / "2_Dense"
    dense.mkdir()
    (dense / "pytorch_model.bin").touch()
    with pytest.raises(UnusableModel, match="2_Dense"):
        _find(str(tmp_path))


def test_pickle_beside_safetensors_is_ignored(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "pytorch_model.bin").touch()
    assert _find(str(tmp_path)) == tmp_path.resolve()


def test_a_decoy_in_safetensors_does_not_let_pickle_in(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "decoy.safetensors").touch()
    with pytest.raises(UnusableModel, match="pickle"):
        _find(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert _find(str(tmp_path)) == tmp_path


def test_a_hub_model_needs_a_revision(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    snapshot = tmp_path / "0123456789abcdef0123456789abcdef01234567"
    with pytest.raises(UnusableModel, match=f'use "BAAI/bge-m3@{snapshot.name}"'):
        check_pinned("BAAI/bge-m3", snapshot)
    check_pinned("BAAI/bge-m3@0123456", snapshot)
    check_pinned("all-MiniLM-L6-v2", tmp_path)
    check_pinned(str(tmp_path), tmp_path)
    assert caplog.text == ""
    check_pinned("BAAI/bge-m3@main", snapshot)
    assert "a branch or tag may move" in caplog.text


def test_a_directory_without_weights_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnusableModel, match="holds no model"):
        _find(str(tmp_path))

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from textmatch.models import multilingual_e5
from textmatch.models.model_resolver import model_id
from textmatch.models.multilingual_e5 import unpacked_directory
from textmatch.models.prompts import Prompts


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    return tmp_path


def test_it_is_the_name_and_twelve_hex_digits(directory: Path):
    assert re.fullmatch(r"tiny-[0-9a-f]{12}", model_id("tiny", directory))


@pytest.mark.parametrize(
    ("name", "short_name"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("/models/my model (1)/", "my-model-1"),
        ("中文", "model"),
        ("x" * 500, "x" * 200),
    ],
)
def test_names_are_fit_for_a_collection(directory: Path, name: str, short_name: str):
    assert model_id(name, directory).rpartition("-")[0] == short_name


def test_prompts_of_the_settings_change_it(directory: Path):
    ids = {
        model_id("m", directory, prompts=prompts)
        for prompts in (None, Prompts("", ""), Prompts("query: ", ""), Prompts("", "query: "))
    }
    assert len(ids) == 4


def test_it_is_stable(directory: Path):
    assert model_id("tiny", directory) == model_id("tiny", directory)


def test_one_changed_byte_changes_it(directory: Path):
    before = model_id("tiny", directory)
    (directory / "model.safetensors").write_bytes(b"weightz")
    assert model_id("tiny", directory) != before


def test_a_file_under_another_name_changes_it(directory: Path):
    before = model_id("tiny", directory)
    (directory / "1_Pooling").rename(directory / "2_Pooling")
    assert model_id("tiny", directory) != before


@pytest.mark.parametrize("path", ["README.md", ".gitattributes", ".cache/lock", "__pycache__/x.pyc"])
def test_what_is_not_the_model_does_not_count(directory: Path, path: str):
    before = model_id("tiny", directory)
    file = directory / path
    file.parent.mkdir(exist_ok=True)
    file.write_text("anything")
    assert model_id("tiny", directory) == before


def test_the_base_of_an_adapter_counts(directory: Path, tmp_path_factory: pytest.TempPathFactory):
    adapter = tmp_path_factory.mktemp("adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(directory)}))
    before = model_id("adapter", adapter)
    (directory / "model.safetensors").write_bytes(b"other weights")
    assert model_id("adapter", adapter) != before


def test_an_unpacked_model_is_identified_by_the_package_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def id_in(cache: Path) -> str:
        return model_id("multilingual-e5-small", unpacked_directory(cache), cache)

    assert id_in(tmp_path / "one") == id_in(tmp_path / "two") == unpacked_directory(tmp_path).name
    before = id_in(tmp_path)
    package_file = tmp_path / "packed.bin"
    package_file.write_bytes(b"other weights")
    monkeypatch.setattr(multilingual_e5, "_package_file", lambda: package_file)
    multilingual_e5.packed_hash.cache_clear()
    assert id_in(tmp_path) != before
    multilingual_e5.packed_hash.cache_clear()


def test_a_copy_outside_the_cache_is_identified_by_its_files(directory: Path):
    copy = directory.rename(unpacked_directory(directory.parent))
    elsewhere = copy.parent / "cache"
    assert model_id("m", copy, elsewhere) != model_id("m", copy, copy.parent)

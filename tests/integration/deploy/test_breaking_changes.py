"""`make check-breaking` compares the protos with those of the last release tag."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.client_programs import ROOT, buf

PROTO = Path("protos/textmatch/v1/encoder_service.proto")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the protos of the working tree in its only commit."""
    for name in subprocess.check_output(["git", "ls-files", "protos"], cwd=ROOT, text=True).split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("Makefile", "buf.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "change")


def check_breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    # This repository has no package.json, from which make would install buf again.
    command = ["make", "--silent", "check-breaking", f"BUF={buf()}", f"--old-file={buf()}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def change(folder: Path, old: str, new: str) -> None:
    source = (folder / PROTO).read_text()
    assert old in source
    (folder / PROTO).write_text(source.replace(old, new))
    commit(folder)


def test_before_the_first_release_there_is_nothing_to_compare_with(repository: Path):
    change(repository, "int32 max_texts = 1;", "int64 max_texts = 1;")
    checked = check_breaking(repository)
    assert (checked.returncode, checked.stdout) == (0, "buf breaking: no release yet\n")


def test_a_change_that_breaks_clients_of_the_last_release_is_found(repository: Path):
    git(repository, "tag", "v0.1.0")
    change(repository, "message GetModelsRequest {}", "message GetModelsRequest {\n  string name = 1;\n}")
    added = check_breaking(repository)
    assert added.returncode == 0, added.stdout + added.stderr
    assert "compared with v0.1.0" in added.stdout
    change(repository, "int32 max_texts = 1;", "int64 max_texts = 1;")
    broken = check_breaking(repository)
    assert broken.returncode != 0
    assert "max_texts" in broken.stdout


def test_the_commit_of_a_release_is_compared_with_the_release_before(repository: Path):
    git(repository, "tag", "v0.1.0")
    change(repository, 'java_package = "dev.textmatch.v1"', 'java_package = "dev.textmatch.v2"')
    git(repository, "tag", "v0.2.0")
    broken = check_breaking(repository)
    assert broken.returncode != 0
    assert "java_package" in broken.stdout

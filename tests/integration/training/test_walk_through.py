"""The commands of docs/training.md, run one after another as they stand there, on tiny data."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest

from tests.integration.training.conftest import WORDS
from textmatch.cli.__main__ import main

GUIDE = Path("docs/training.md")
# Models of the hub or of full size.
REPLACED = {
    "BAAI/bge-small-zh-v1.5": "base",
    "multilingual-e5-small": "base",
    "BAAI/bge-reranker-v2-m3": "cross-encoder",
}
QUICK = ["--max-steps", "3", "--max-length-tokens", "32", "--device", "cpu"]
# To a model that has learnt nothing all texts are close.
OWN_OPTIONS = {
    "regression": ["--warm-up-pairs", "20", "--max-steps", "40", "--learning-rate", "1e-3"],
    "mine": ["--margin", "0"],
}
RECIPES = ("siamese", "cosent", "sbert", "simcse", "regression", "distill", "mlm")


def _commands() -> list[list[str]]:
    """What stands in code blocks and needs neither the hub nor a running stack."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [
        shlex.split(line)
        for line in lines
        if line.startswith(("textmatch train", "textmatch evaluate")) and "albert-tiny" not in line
    ]


@pytest.mark.slow
def test_every_command_of_the_guide_works(
    bases: dict[str, Path],
    vocabulary: Path,
    sentences: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    commands = _commands()
    assert {command[2] for command in commands} >= {*RECIPES, "split", "mine", "calibrate"} - {"sbert"}
    chance = random.Random(3)
    rows = [
        # A cross-encoder of two layers learns to look for a word, but not to compare in so few steps.
        ("red " + " ".join(chance.sample(WORDS[1:], 3)), "red " + " ".join(chance.sample(WORDS[1:], 3)), "1")
        if number % 2
        else (" ".join(chance.sample(WORDS[1:], 4)), " ".join(chance.sample(WORDS[1:], 4)), "0")
        for number in range(200)
    ]
    lines = ["sentence1,sentence2,label", *(",".join(row) for row in rows)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "sentences.txt").write_text(sentences.read_text())
    (tmp_path / "vocab-zh.txt").write_text(vocabulary.read_text())
    pairs = [f"{first}\t{second}" for first, second, _ in rows]
    (tmp_path / "translations.tsv").write_text("\n".join(pairs))
    (tmp_path / "sts.tsv").write_text(
        "\n".join(f"{one}\t{number / 10}" for number, one in enumerate(pairs[:10]))
    )
    (tmp_path / "training").symlink_to(Path("training").resolve())
    (tmp_path / "base").symlink_to(bases["bert"])
    monkeypatch.chdir(tmp_path)
    for command in commands:
        _, *arguments = [REPLACED.get(word, word) for word in command]
        quick = QUICK if arguments[1] in RECIPES else []
        own = OWN_OPTIONS.get(arguments[1], [])
        code, printed = main([*arguments, *quick, *own]), capsys.readouterr()
        # Three steps need not make a model better.
        is_done = code == 0 or "did not make the model better" in printed.out
        assert is_done, (shlex.join(command), printed.err)
    assert (tmp_path / "bi-encoder-2" / "README.md").is_file()
    assert any((tmp_path / "plots").glob("*.png"))

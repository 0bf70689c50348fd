from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from training.regression import RegressionSettings
from training.settings import add_command, command_line
from training.siamese import SiameseSettings


def _parsed(settings_class: type, words: list[str]) -> object:
    """What a command with these options would be called with."""
    app, found = typer.Typer(), []
    add_command(app, "train", settings_class, found.append)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return found[0]


@pytest.mark.parametrize(
    "settings",
    [
        SiameseSettings(train=[Path("a/b.tsv")], output=Path("a/model")),
        SiameseSettings(
            train=[Path("a/b.tsv"), Path("a/c d.tsv")],
            output=Path("a/model"),
            dev=Path("a/dev.tsv"),
            header=False,
            lstm="bilstm",
            lr_schedule="1000:1,2000:0.1",
            dropout=0.2,
            bf16=True,
        ),
        RegressionSettings(
            train=[Path("a/b.tsv")], output=Path("a/model"), score_range=(0.0, 5.0), sigmoid=False, bf16=False
        ),
    ],
)
def test_the_command_of_a_run_gives_its_settings(
    settings: SiameseSettings | RegressionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command_line("recipe", settings))
    assert words[:3] == ["textmatch", "train", "recipe"]
    assert _parsed(type(settings), words[3:]) == settings


def test_files_are_named_by_folder_and_name_alone(tmp_path: Path):
    settings = SiameseSettings(train=[tmp_path / "pairs.tsv"], output=tmp_path / "model")
    assert str(tmp_path) not in command_line("siamese", settings)

from __future__ import annotations

import shlex
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from training.regression import RegressionSettings
from training.settings import add_command, command_line, with_length
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


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (6_000, {}, (3, 0)),
        (8_000, {}, (3, 0)),
        (8_001, {}, (1, 750)),
        (50_000, {}, (1, 750)),
        (50_000, {"device": "cuda"}, (3, 0)),
        (50_000, {"epochs": 2}, (2, 0)),
        (50_000, {"max_steps": 2_000}, (1, 2_000)),
        (16_000, {"accumulate": 2}, (3, 0)),
    ],
)
def test_a_run_on_a_cpu_takes_minutes_unless_its_length_is_set(
    rows: int, options: dict[str, Any], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.settings.resolve_device", lambda device: device)
    options = {"device": "cpu"} | options
    settings = SiameseSettings(train=[Path("pairs.tsv")], output=Path("model"), **options)
    console = Console(file=StringIO(), width=200)
    found = with_length(settings, rows, 3, console)
    assert (found.epochs, found.max_steps) == expected
    is_cut = expected == (1, 750)
    assert ("750 steps" in console.file.getvalue()) == is_cut  # type: ignore[attr-defined]
    if rows == 50_000 and is_cut:
        assert "750 steps, 0.48 passes over the data" in console.file.getvalue()  # type: ignore[attr-defined]


def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch):
    def computes(flags: dict[str, bool], **options: Any) -> bool:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
        settings = SiameseSettings(train=[Path("a.tsv")], output=Path("model"), device="cpu", **options)
        return settings.computes_in_bfloat16

    assert computes({"amx_bf16": True})
    assert not computes({"avx2": True})
    assert computes({"avx2": True}, bf16=True)
    assert not computes({"amx_bf16": True}, bf16=False)

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from textmatch.cli import commands
from textmatch.cli.__main__ import main

MODULE = '''
"""Commands of a part.

More about them.
"""

import typer

from textmatch.errors import NotReady

app = typer.Typer()


def up(name: str, loud: bool = False) -> None:
    """Start it.

    More.
    """
    print(f"up {name} {loud}")


def fail() -> None:
    raise NotReady("still\\nloading")


def crash() -> None:
    raise ZeroDivisionError


@app.command()
def first(value: str) -> None:
    print(f"first {value}")


@app.command()
def second() -> None:
    raise typer.Exit(7)
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Declares an entry point of the group."""
    installed: dict[str, EntryPoint] = {}
    (tmp_path / "part_of_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(commands, "_installed", lambda: installed)
    monkeypatch.delitem(sys.modules, "part_of_tests", raising=False)

    def declare(name: str, value: str) -> None:
        installed[name] = EntryPoint(name, value, commands.ENTRY_POINT_GROUP)

    return declare


def test_a_function_becomes_a_command(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
):
    install("up", "part_of_tests:up")
    assert main(["up", "it", "--loud"]) == 0
    assert capsys.readouterr().out == "up it True\n"


def test_its_own_help_is_shown(install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]):
    install("up", "part_of_tests:up")
    assert main(["up", "--help"]) == 0
    assert "--loud" in capsys.readouterr().out


def test_an_app_brings_commands_of_its_own(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
):
    install("train", "part_of_tests:app")
    assert main(["train", "first", "x"]) == 0
    assert capsys.readouterr().out == "first x\n"
    assert main(["train", "second"]) == 7


def test_help_lists_commands_without_importing_them(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
):
    install("up", "part_of_tests:up")
    install("train", "part_of_tests:app")
    install("gone", "no_such_module.commands:gone")
    assert main(["--help"]) == 0
    listed = {line.strip("│ \n") for line in capsys.readouterr().out.splitlines()}
    assert "up            Start it." in listed
    assert "train         Commands of a part." in listed
    assert "gone          Not installed: no_such_module.commands." in listed
    assert "delete        Delete documents by id or by filter, queued ones too." in listed
    assert "part_of_tests" not in sys.modules


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("no_such_part.commands:up", "needs the package no_such_part"),
        ("no_such_part.commands:up", "pip install 'textmatch[no_such_part]'"),
        ("no_such_part.commands:up [gpu]", "pip install 'textmatch[gpu]'"),
    ],
)
def test_what_is_not_installed_says_what_to_install(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str], value: str, hint: str
):
    install("up", value)
    assert main(["up", "--any", "option"]) == 1
    captured = capsys.readouterr()
    assert hint in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_errors_for_people_are_one_line(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
):
    install("fail", "part_of_tests:fail")
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "textmatch: still loading\n"


def test_bugs_keep_their_trace(install: Callable[[str, str], None]):
    install("crash", "part_of_tests:crash")
    with pytest.raises(ZeroDivisionError):
        main(["crash"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["matsch", "q"], "textmatch: No such command 'matsch'. Did you mean 'match'?\n"),
        (["match"], "textmatch: Invalid value: give queries, --file or --id\n"),
        (["match", "q", "--top-k", "0"], "textmatch: Invalid value for '--top-k': "),
        (["match", "q", "--topk", "1"], "textmatch: No such option: --topk"),
        (["encode"], "textmatch: Missing argument 'TEXT'.\n"),
        (["score", "only one"], "textmatch: Invalid value: give two texts, not 1; put each in quotes\n"),
        (["score"], "textmatch: Invalid value: give two texts or --file\n"),
        (["score", "a", "b", "--file", "f"], "textmatch: Invalid value: give two texts or --file\n"),
        (["score", "a", "b", "--scorer", "magic"], "textmatch: Invalid value for '--scorer'"),
        (["ingest", "a.csv", "--rejected", "./a.csv"], "textmatch: Invalid value: --rejected must not be"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "ingest" in capsys.readouterr().out


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("textmatch 0.")

"""The command as a process: exit codes, pipes, signals, locales and how soon it starts."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import TextMatchClient
from textmatch.errors import Overloaded

COMMAND = [sys.executable, "-m", "textmatch.cli"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def read_terminal(terminal: int) -> str:
    """Everything until the other side is closed."""
    seen = b""
    with open(terminal, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while chunk := screen.read(65_536):
            seen += chunk
    return seen.decode()


def test_help_takes_little_longer_than_the_libraries_that_print_it():
    def seconds(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, timeout=60, check=True)
        return time.perf_counter() - started

    libraries = min(seconds("-c", "import typer.rich_utils") for _ in range(5))
    assert min(seconds("-m", "textmatch.cli", "--help") for _ in range(5)) < 3 * libraries


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from textmatch.cli.__main__ import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'numpy', 'google.protobuf')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_exit_codes_and_streams_of_failures():
    failed = run("match", "q", "--json", "--matcher", "127.0.0.1:1")
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert failed.stderr == (
        b"textmatch: the matcher at 127.0.0.1:1 does not answer; is the stack running?"
        b" Start it with: textmatch up\n"
    )
    misused = run("match")
    assert (misused.returncode, misused.stdout) == (2, b"")
    assert misused.stderr == b"textmatch: Invalid value: give queries, --file or --id\n"


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_output_is_utf8_whatever_the_locale(
    matcher_server: RunningServer, client: TextMatchClient, locale: str
):
    client.ingest_all([{"id": "猫", "text": "猫 坐"}])
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    arguments = ["match", "sits", "--matcher", matcher_server.address]
    as_json = run(*arguments, "--json", env=environment)
    assert json.loads(as_json.stdout.decode())["matches"][0]["text"] == "猫 坐"
    assert "│ 猫 坐" in run(*arguments, env=environment).stdout.decode()


def test_documents_come_from_a_pipe(matcher_server: RunningServer, matcher: ScriptedMatcher):
    lines = b'{"id": "a", "text": "t"}\n\xff\n'
    done = run("ingest", "-", "--json", "--matcher", matcher_server.address, input=lines)
    assert done.returncode == 1
    assert json.loads(done.stdout)["accepted"] == 1
    assert done.stderr == b"stdin line 2: is not UTF-8: byte 0xff at byte 1 of the line\n"
    assert set(matcher.documents) == {"a"}
    table = b"id\ttext\nb\tt\n"
    arguments = ["ingest", "-", "--format", "tsv", "--matcher", matcher_server.address]
    done = run(*arguments, input=table)
    assert (done.returncode, done.stderr) == (0, b"")
    table = b"id\ttext\tyear\tn\nb\tt\t2020\t5\nc\tt\t2021\t6\n"
    done = run(*arguments, "--types", "n:integer", input=table)
    told = b"textmatch: stdin: year: string, as in every pipe; --types sets types\n"
    assert (done.returncode, done.stderr) == (0, told)
    assert dict(matcher.documents["c"].attributes) == {"year": "2021", "n": 6.0}


def test_people_see_a_progress_bar_on_stderr_and_programs_clean_json(
    matcher_server: RunningServer, matcher: ScriptedMatcher, tmp_path: Path
):
    matcher.queued.extend([(20, 9.0), (7, 9.0)])
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(f'{{"id": "d{number}", "text": "t"}}\n' for number in range(500)) + "nonsense\n")
    terminal, stderr = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    arguments = ["ingest", str(file), "--wait", "--json", "--matcher", matcher_server.address]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=stderr, env=environment
    ) as process:
        os.close(stderr)
        seen = read_terminal(terminal)
        out, _ = process.communicate(timeout=60)
    assert json.loads(out)["accepted"] == 500
    assert "501 documents" in seen
    assert "queued" in seen
    assert "line 501: is not JSON" in seen


def test_a_reader_that_goes_away_is_no_error(encoder_server: RunningServer, tmp_path: Path):
    file = tmp_path / "pairs.tsv"
    file.write_text("text\ttext\n" * 5_000)
    arguments = ["score", "--file", str(file), "--json", "--encoder", encoder_server.address]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


def test_a_reader_that_is_gone_at_the_end_is_no_error(matcher_server: RunningServer):
    command = f"{sys.executable} -m textmatch.cli status --matcher {matcher_server.address} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


def test_ctrl_c_ends_with_130_and_no_trace(matcher_server: RunningServer, matcher: ScriptedMatcher):
    matcher.delay_seconds = 30.0
    arguments = [*COMMAND, "match", "q", "--matcher", matcher_server.address]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while not matcher.match_requests:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err


def test_an_ingest_that_is_interrupted_says_how_to_go_on(
    matcher_server: RunningServer, matcher: ScriptedMatcher, tmp_path: Path
):
    matcher.document_errors["d900"] = deque([Overloaded("full", retry_delay_seconds=60.0)])
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(f'{{"id": "d{number}", "text": "t"}}\n' for number in range(1_000)))
    arguments = [*COMMAND, "ingest", str(file), "--matcher", matcher_server.address]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while len(matcher.documents) < 999:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # The answers are on their way.
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"")
    assert err == (
        b"textmatch: interrupted; 900 documents were accepted;"
        b" repeat the command with --resume for the rest\n"
    )
    done = run("ingest", str(file), "--resume", "--json", "--matcher", matcher_server.address)
    assert json.loads(done.stdout)["accepted"] + json.loads(done.stdout)["unchanged"] == 1_000
    assert matcher.batch_sizes[-1] == 100


def test_the_queue_is_watched_until_ctrl_c(matcher_server: RunningServer, matcher: ScriptedMatcher):
    matcher.queued.extend([(20, 9.0), (10, 9.5)])
    arguments = [*COMMAND, "status", "--watch", "--json", "--matcher", matcher_server.address]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, b"")
    assert (first["queued"], first["oldest_seconds"], first["drained_per_second"]) == (20, 9.0, None)
    assert second["queued"] == 10
    assert 5 < second["drained_per_second"] < 11


def test_the_watched_queue_is_a_table_for_people(matcher_server: RunningServer, matcher: ScriptedMatcher):
    matcher.queued.extend([(20, 9.0)] * 100)
    terminal, output = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    arguments = [*COMMAND, "status", "--watch", "--matcher", matcher_server.address]
    with subprocess.Popen(arguments, stdout=output, stderr=output, env=environment) as process:
        os.close(output)
        time.sleep(3.0)
        process.send_signal(signal.SIGINT)
        seen = read_terminal(terminal)
        assert process.wait(timeout=20) == 0
    assert "dead letters" in seen
    assert "not shrinking" in seen


def test_the_state_of_a_document(matcher_server: RunningServer, client: TextMatchClient):
    client.ingest_all([{"id": "猫", "text": "t"}])
    arguments = ["--matcher", matcher_server.address]
    assert run("status", "--id", "猫", *arguments).stdout == b"INDEXED\n"
    assert run("status", "--id", "lost", *arguments).stdout == b"FAILED: the model failed on it\n"
    as_json = json.loads(run("status", "--id", "lost", "--json", *arguments).stdout)
    assert as_json == {"id": "lost", "state": "FAILED", "error": "the model failed on it"}


def test_nothing_is_kept_of_stdin_even_if_it_is_a_file(
    matcher_server: RunningServer, matcher: ScriptedMatcher, tmp_path: Path
):
    matcher.fail_after_batches = 1
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(f'{{"id": "d{number}", "text": "t"}}\n' for number in range(500)))
    with file.open("rb") as stdin:
        arguments = ["ingest", "-", "--matcher", matcher_server.address]
        failed = subprocess.run(
            [*COMMAND, *arguments], stdin=stdin, capture_output=True, check=False, cwd=tmp_path
        )
    assert failed.returncode == 1
    assert b"--resume" not in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["docs.jsonl"]

"""The examples of docs/gateway.md, as printed, against a real stack."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import Stack, wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
ADDRESS = "127.0.0.1:8080"


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run(stack: Stack, *command: str) -> str:
    bound = [part.replace(ADDRESS, stack.file["gateway"]) for part in command]
    done = subprocess.run(bound, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_of_curl(stack: Stack):
    embeddings, collections = examples("sh")
    assert len(json.loads(run(stack, "bash", "-c", embeddings))["data"]) == 2
    made, uploaded, matched = [part for part in collections.split("\n\n") if part.strip()]
    assert json.loads(run(stack, "bash", "-c", made))["name"] == "faq"
    lines = run(stack, "bash", "-c", uploaded).splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["ACCEPTED", "ACCEPTED"]

    def finds_rm() -> bool:
        matches = json.loads(run(stack, "bash", "-c", matched))["matches"]
        return [match["id"] for match in matches] == ["rm"]

    wait_until(finds_rm, "the document to be searchable")


@pytest.mark.parametrize("code", examples("python"))
def test_the_examples_of_python(stack: Stack, code: str):
    run(stack, sys.executable, "-c", code)


def test_the_server_of_tools_is_a_command(stack: Stack):
    [configured] = examples("json")
    [server] = json.loads(configured)["mcpServers"].values()
    assert server["command"] == "textmatch"
    shown = stack.textmatch(server["args"][0], "--help")
    assert shown.returncode == 0
    assert "--read-only" in shown.stdout


def test_the_stack_says_where_the_gateway_is(stack: Stack):
    health = json.loads(run(stack, "curl", "-s", f"http://{ADDRESS}/health"))
    assert health == {"encoder": "SERVING", "matcher": "SERVING"}
    assert stack.file["metrics"]["gateway"]

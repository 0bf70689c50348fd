"""What the README promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.stack import Stack

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_client_of_the_readme_works_as_printed(stack: Stack):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    addresses = {
        "TEXTMATCH_MATCHER_TARGET": stack.file["matcher"],
        "TEXTMATCH_ENCODER_TARGET": stack.file["encoder"],
    }
    bound = code.replace(
        "TextMatchClient()",
        f"TextMatchClient(matcher={addresses['TEXTMATCH_MATCHER_TARGET']!r},"
        f" encoder={addresses['TEXTMATCH_ENCODER_TARGET']!r})",
    )
    done = subprocess.run(
        [sys.executable, "-c", bound], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^0\.\d\d  rm  delete a folder and everything in it$", done.stdout, re.MULTILINE)


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()]
    assert missing == []


def test_every_make_target_that_docs_name_exists():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        target
        for page in pages
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert named - rules == set()

"""FindDuplicates over two collections, with the rights of API keys, from the client and the command."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.collections.conftest import SECOND_MODEL
from tests.integration.collections.installation import Installation
from textmatch.cli.__main__ import main
from textmatch.client import AsyncTextMatchClient
from textmatch.errors import CollectionDenied, CollectionNotFound, CollectionsDiffer, Overloaded
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import matcher_service_pb2 as pb

Install = Callable[..., Awaitable[Installation]]

KEYS = {name: f"{name}-key-0123456789abcdef" for name in ("both", "one", "slow")}


def document(document_id: str, text: str) -> pb.Document:
    return pb.Document(id=document_id, text=text)


async def create(installation: Installation, name: str, bi_encoder: str = "") -> None:
    request = collection_pb.CreateCollectionRequest(collection={"name": name, "bi_encoder": bi_encoder})
    await installation.call(installation.collections.CreateCollection, request, KEYS["both"])


@pytest.fixture
async def two(installations: Install, tmp_path: Path) -> Installation:
    """The collections `faq` and `archive`, which have some equal texts."""
    file = tmp_path / "keys"
    file.write_text(
        f"both admin {KEYS['both']}\none read {KEYS['one']} collections=faq\nslow read {KEYS['slow']} 10\n"
    )
    guarded = await installations("alpha", keys_file=file)
    for name in ("faq", "archive"):
        await create(guarded, name)
    faq = [("a", "same"), ("b", "same"), ("c", "other"), ("d", "third"), ("e", "third"), ("f", "third")]
    archive = [("a", "other"), ("x", "same"), ("y", "alone")]
    await guarded.ingest("faq", *(document(*one) for one in faq), key=KEYS["both"])
    await guarded.ingest("archive", *(document(*one) for one in archive), key=KEYS["both"])
    await guarded.work()
    return guarded


async def found(installation: Installation, key: str = "both", **options: Any) -> list[tuple[str, str]]:
    async with AsyncTextMatchClient(installation.address, api_key=KEYS[key], collection="faq") as client:
        pages = [one async for one in client.find_duplicates(min_score=0.9, **options)]
    return [(pair.first.id, pair.second.id) for page in pages for pair in page]


async def test_pairs_of_one_collection_and_of_two(two: Installation):
    one = {frozenset(pair) for pair in await found(two)}
    assert one == {frozenset(pair) for pair in ("ab", "de", "df", "ef")}
    assert {frozenset(pair) for pair in await found(two, against="faq")} == one
    assert sorted(await found(two, against="archive")) == [("a", "x"), ("b", "x"), ("c", "a")]
    with pytest.raises(CollectionNotFound):
        await found(two, against="nothing")


async def test_a_key_needs_both_collections(two: Installation):
    assert await found(two, "one")
    assert await found(two, "one", against="faq")
    with pytest.raises(CollectionDenied, match="must not use this collection"):
        await found(two, "one", against="archive")


async def test_a_key_is_charged_for_the_neighbors(two: Installation):
    request = pb.FindDuplicatesRequest(collection="faq", neighbors=100)

    async def search() -> None:
        metadata = [("authorization", f"Bearer {KEYS['slow']}")]
        async for _ in two.matcher.FindDuplicates(request, metadata=metadata, timeout=60):
            pass

    await search()
    with pytest.raises(Exception, match="used up its 10 tokens per second") as raised:
        await search()
    assert "RESOURCE_EXHAUSTED" in str(raised.value) or isinstance(raised.value, Overloaded)


async def test_collections_of_different_models_are_not_compared(two: Installation):
    await create(two, "young", SECOND_MODEL)
    await two.ingest("young", document("a", "same"), key=KEYS["both"])
    await two.work()
    with pytest.raises(CollectionsDiffer, match=SECOND_MODEL):
        await found(two, against="young")


async def run(two: Installation, *arguments: str) -> int:
    given = ["duplicates", *arguments, "--matcher", two.address, "--collection", "faq", "--min-score", "0.9"]
    return await asyncio.to_thread(main, given)


async def test_the_command_prints_pairs_and_clusters(
    two: Installation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEXTMATCH_API_KEY", KEYS["both"])
    assert await run(two) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["first"]["text"] for line in lines} == {"same", "third"}
    assert {frozenset((line["first"]["id"], line["second"]["id"])) for line in lines} == {
        frozenset(pair) for pair in ("ab", "de", "df", "ef")
    }
    assert await run(two, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(lines)
    assert [float(row["score"]) for row in rows] == [line["score"] for line in lines]
    assert await run(two, "--clusters") == 0
    clusters = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ids = [sorted(one["id"] for one in cluster["documents"]) for cluster in clusters]
    assert ids == [["d", "e", "f"], ["a", "b"]]
    assert await run(two, "--clusters", "--against", "archive", "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    members = {(row["cluster"], row["collection"], row["id"]) for row in rows}
    assert members == {
        ("1", "faq", "a"),
        ("1", "faq", "b"),
        ("1", "archive", "x"),
        ("2", "faq", "c"),
        ("2", "archive", "a"),
    }
    assert await run(two, "--where", "n >") == 2
    assert await run(two, "--against", "nothing") == 1
    assert 'no collection "nothing"' in capsys.readouterr().err


async def test_an_interrupted_output_is_continued(
    two: Installation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TEXTMATCH_API_KEY", KEYS["both"])
    output = tmp_path / "pairs.jsonl"
    to_file = ["--output", str(output), "--json"]
    assert await run(two, *to_file) == 0
    assert json.loads(capsys.readouterr().out) == {"pairs": 4, "compared": 6}
    whole = output.read_text().splitlines(keepends=True)
    assert await run(two, *to_file) == 1
    assert "exists; continue it with --resume, or delete it" in capsys.readouterr().err
    compared = []
    for kept in range(len(whole) + 1):
        output.write_text("".join(whole[:kept]) + (whole[kept][:30] if kept < len(whole) else ""))
        assert await run(two, *to_file, "--resume") == 0
        figures = json.loads(capsys.readouterr().out)
        assert (output.read_text().splitlines(keepends=True), figures["pairs"]) == (whole, len(whole) - kept)
        compared.append(figures["compared"])
    # What the file has completely is not compared again.
    assert compared == sorted(compared, reverse=True)
    assert compared[0] == 6 > compared[-1]
    output.write_text("no pair\n")
    assert await run(two, *to_file, "--resume") == 1
    assert f"{output} line 1 is not a pair" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--resume"], "--resume needs --output"),
        (["--output", "f", "--clusters"], "leave --clusters and --format out"),
        (["--output", "f", "--format", "csv"], "leave --clusters and --format out"),
        (["--json", "--format", "csv"], "leave --format out"),
    ],
)
def test_options_that_exclude_each_other(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
):
    assert main(["duplicates", *arguments]) == 2
    assert problem in capsys.readouterr().err

"""Stored documents and dead letters of an installation: export and ingest, and the rights of API keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.collections.installation import Installation
from tests.integration.ingest.scripted_encoder import REFUSED_TEXT
from textmatch.cli.__main__ import main
from textmatch.errors import CollectionDenied, Overloaded, PermissionDenied
from textmatch.queue.dead_letters import of_raw
from textmatch.v1 import matcher_service_pb2 as pb

Install = Callable[..., Awaitable[Installation]]
COUNT = 1_300


async def run(installation: Installation, *arguments: str, collection: str = "faq") -> None:
    """A command, which blocks, in a thread."""
    given = [*arguments, "--matcher", installation.address, "--collection", collection]
    assert await asyncio.to_thread(main, given) == 0


def written(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"文档 {number}",
            "text": f"line {number}\n\u2028 \t 猫",
            "attributes": {"n": number, "half": number / 2, "deep": {"": [None, True, "x"]}},
            "version": 2**53 - 1 - number,
        }
        for number in range(count)
    ]


async def test_what_is_exported_and_ingested_again_is_exported_equally(alpha: Installation, tmp_path: Path):
    source, first, second = (tmp_path / f"{one}.jsonl" for one in ("source", "first", "second"))
    documents = written(COUNT)
    source.write_text("".join(json.dumps(one) + "\n" for one in documents))
    await alpha.create("faq")
    await run(alpha, "ingest", str(source))
    await alpha.work()
    await run(alpha, "export", str(first))
    exported = [json.loads(line) for line in first.read_text(encoding="utf-8").split("\n") if line]
    assert sorted(exported, key=lambda one: one["attributes"]["n"]) == documents
    await alpha.delete("faq")
    await alpha.create("faq")
    await run(alpha, "ingest", str(first))
    await alpha.work()
    await run(alpha, "export", str(second))
    assert second.read_bytes() == first.read_bytes()
    await run(alpha, "export", str(second), "--where", "n < 3")
    # Texts have separators of lines that JSON lines do not have.
    few = [json.loads(line) for line in second.read_text(encoding="utf-8").split("\n") if line]
    assert {one["attributes"]["n"] for one in few} == {0, 1, 2}


async def test_dead_letters_need_no_redis(
    alpha: Installation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEXTMATCH_REDIS_URL", "redis://127.0.0.1:1/0")
    await alpha.create("faq")
    await alpha.ingest("faq", pb.Document(id="bad", text=REFUSED_TEXT))
    await alpha.work()
    await run(alpha, "dead-letters", "list", "--json")
    letter = json.loads(capsys.readouterr().out)
    assert (letter["id"], letter["text"]) == ("bad", REFUSED_TEXT)
    await run(alpha, "dead-letters", "replay", "--all", "--json")
    assert json.loads(capsys.readouterr().out) == {"replayed": 1}
    # It fails again.
    await alpha.work()
    await run(alpha, "dead-letters", "drop", "bad")
    assert capsys.readouterr().out == "dropped 1\n"
    assert (await alpha.status("faq")).dead_letter_count == 0


async def test_unreadable_messages_are_listed_queued_again_and_dropped(alpha: Installation):
    await alpha.store.unreadable.add([of_raw("{one", "e"), of_raw("{two", "e")])
    matcher = alpha.matcher
    listed = await alpha.call(matcher.ListDeadLetters, pb.ListDeadLettersRequest(unreadable=True))
    assert [one.raw for one in listed.dead_letters] == ["{one", "{two"]
    assert not (await alpha.call(matcher.ListDeadLetters, pb.ListDeadLettersRequest())).dead_letters
    one, two = (letter.id for letter in listed.dead_letters)
    dropped = await alpha.call(matcher.DropDeadLetters, pb.DropDeadLettersRequest(ids=[one]))
    assert dropped.dropped_count == 0
    replay = pb.ReplayDeadLettersRequest(ids=[one], unreadable=True)
    assert (await alpha.call(matcher.ReplayDeadLetters, replay)).replayed_count == 1
    assert await alpha.redis.rpop(alpha.keys.queue) == "{one"
    drop = pb.DropDeadLettersRequest(ids=[one, two], unreadable=True)
    assert (await alpha.call(matcher.DropDeadLetters, drop)).dropped_count == 1


async def test_keys_need_scopes_and_unreadable_messages_an_operator_of_all_collections(
    installations: Install, tmp_path: Path
):
    keys = {name: f"{name}-key-0123456789abcdef" for name in ("reader", "writer", "owner", "admin")}
    file = tmp_path / "keys"
    file.write_text(
        f"reader read {keys['reader']}\nwriter write {keys['writer']}\n"
        f"owner admin {keys['owner']} collections=default\nadmin admin {keys['admin']}\n"
    )
    guarded = await installations("alpha", keys_file=file)
    matcher = guarded.matcher
    reads = [
        (matcher.GetDocuments, pb.GetDocumentsRequest(ids=["a"])),
        (matcher.ListDocuments, pb.ListDocumentsRequest()),
        (matcher.CountDocuments, pb.CountDocumentsRequest()),
        (matcher.ListDeadLetters, pb.ListDeadLettersRequest()),
    ]
    writes = [
        (matcher.ReplayDeadLetters, pb.ReplayDeadLettersRequest(ids=["a"])),
        (matcher.DropDeadLetters, pb.DropDeadLettersRequest(ids=["a"])),
    ]
    for calls, allowed, refused in ((reads, "reader", "writer"), (writes, "writer", "reader")):
        for method, request in calls:
            for name in (allowed, "owner", "admin"):
                await guarded.call(method, request, keys[name])
            with pytest.raises(PermissionDenied, match="lacks the scope"):
                await guarded.call(method, request, keys[refused])
    for method, request in (
        (matcher.ListDeadLetters, pb.ListDeadLettersRequest(unreadable=True)),
        (matcher.ReplayDeadLetters, pb.ReplayDeadLettersRequest(ids=["a"], unreadable=True)),
        (matcher.DropDeadLetters, pb.DropDeadLettersRequest(ids=["a"], unreadable=True)),
    ):
        for name in ("reader", "writer"):
            with pytest.raises(PermissionDenied):
                await guarded.call(method, request, keys[name])
        with pytest.raises(CollectionDenied, match="must not use all collections"):
            await guarded.call(method, request, keys["owner"])
        await guarded.call(method, request, keys["admin"])


@pytest.mark.parametrize("what", ["list", "get", "count", "letters"])
async def test_a_key_is_charged_for_what_it_reads(installations: Install, tmp_path: Path, what: str):
    keys_file = tmp_path / "keys"
    # A burst of 20 tokens.
    keys_file.write_text("admin admin the-key-of-all-0123456789\nslow read the-slow-key-0123456789 2\n")
    guarded = await installations("alpha", keys_file)
    admin, slow = "the-key-of-all-0123456789", "the-slow-key-0123456789"
    documents = [pb.Document(id=f"d{number}", text="text") for number in range(60)]
    await guarded.ingest("default", *documents, key=admin)
    await guarded.work()
    collection = await guarded.store.get("default")
    await collection.dead_letters.add([of_raw(f"{{{number}", "e") for number in range(60)])
    matcher = guarded.matcher
    method, request = {
        "list": (matcher.ListDocuments, pb.ListDocumentsRequest()),
        "get": (matcher.GetDocuments, pb.GetDocumentsRequest(ids=[one.id for one in documents])),
        "count": (matcher.CountDocuments, pb.CountDocumentsRequest()),
        "letters": (matcher.ListDeadLetters, pb.ListDeadLettersRequest()),
    }[what]
    await guarded.call(method, request, slow)
    with pytest.raises(Overloaded, match="used up its 2 tokens per second"):
        await guarded.call(method, request, slow)

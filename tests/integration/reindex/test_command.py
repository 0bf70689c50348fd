"""`textmatch reindex` from beginning to end, and what it refuses."""

from __future__ import annotations

from pathlib import Path

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.reindex.command import ReindexCommand
from tests.integration.reindex.contents import by_id, contents
from tests.support.collections import roles_of
from textmatch.collection_roles import Roles
from textmatch.documents import Document
from textmatch.index.index import Index
from workers.indexer import IndexerDependencies, index_documents


def documents(count: int, version: int = 1) -> list[Document]:
    return [Document(f"文档🙂{number}", f"text {number}", {"n": number}, version) for number in range(count)]


async def test_a_change_of_the_model_and_back_loses_nothing(
    command: ReindexCommand, deps: IndexerDependencies, index: Index, old: str, new: str
):
    kept = documents(1_200)
    for start in range(0, len(kept), 200):
        await index_documents(kept[start : start + 200], deps)
    report = await command.run("--model", new, "--sample", "20")
    assert (report["source"], report["target"], report["switched"]) == (old, new, True)
    assert (report["documents"], report["written"], report["differing"]) == (1_200, 1_200, 0)
    assert report["queries"] == 20
    assert 0.0 <= report["overlap"] <= 1.0
    assert await roles_of(index) == Roles(in_use=new, previous=old)
    assert await contents(index, new) == by_id(kept)

    newer = [Document("later", "only after the switch", version=5), *documents(3, version=9)]
    await index_documents(newer, deps)
    await index.delete({kept[7].id: 100})
    after = {**by_id(kept), **by_id(newer)}
    del after[kept[7].id]
    assert await contents(index, new) == await contents(index, old) == after

    assert await command.run("--rollback") == {"in_use": old, "previous": new}
    assert await roles_of(index) == Roles(in_use=old, previous=new)
    assert await contents(index, await index.model_in_use()) == after

    assert await command.run("--drop-old") == {"dropped": new}
    assert await roles_of(index) == Roles(in_use=old)


async def test_without_a_switch_it_is_kept_equal_until_the_next_run(
    command: ReindexCommand, deps: IndexerDependencies, index: Index, old: str, new: str
):
    await index_documents(documents(10), deps)
    report = await command.run("--model", new, "--no-switch")
    assert not report["switched"]
    await index_documents(documents(12, version=2), deps)
    assert await contents(index, new) == by_id(documents(12, version=2))
    report = await command.run("--model", new)
    assert (report["switched"], report["written"]) == (True, 0)
    assert await roles_of(index) == Roles(in_use=new, previous=old)


async def test_a_build_can_be_cancelled(
    command: ReindexCommand, deps: IndexerDependencies, index: Index, old: str, new: str
):
    await index_documents(documents(3), deps)
    await command.run("--model", new, "--no-switch")
    assert await command.run("--cancel") == {"dropped": new}
    assert await roles_of(index) == Roles(in_use=old)


async def test_too_different_answers_are_no_switch(
    command: ReindexCommand, deps: IndexerDependencies, index: Index, old: str, new: str, tmp_path: Path
):
    await index_documents(documents(50), deps)
    queries = tmp_path / "queries.txt"
    queries.write_text("one\n\nanother 查询\n")
    line = await command.fail("--model", new, "--queries", str(queries), "--min-overlap", "1")
    assert "not switched" in line
    assert await roles_of(index) == Roles(in_use=old, next=new)


async def test_what_the_new_model_cannot_embed_is_named_and_goes_to_the_dead_letters(
    command: ReindexCommand, deps: IndexerDependencies, index: Index, encoder: ScriptedEncoder, new: str
):
    refused = Document("bad", "only the old model can read this", version=3)
    await index_documents([*documents(5), refused], deps)
    encoder.refused_by_model = {new: refused.text}
    line = await command.fail("--model", new)
    assert '"bad"' in line
    assert "--allow-refused" in line
    report = await command.run("--model", new, "--allow-refused")
    assert (report["switched"], report["refused"], report["documents"]) == (True, ["bad"], 5)
    [letter] = await deps.collection.dead_letters.entries(10)
    assert (letter.document, letter.reason) == (refused, "TEXT_FAILED")


async def test_what_was_deleted_while_nobody_wrote_to_the_copy_goes_from_it(
    command: ReindexCommand, deps: IndexerDependencies, index: Index, new: str
):
    await index_documents(documents(10), deps)
    await index.roles.start(new, 8)
    await index_documents([Document("gone", "text", version=4), *documents(4)], deps)
    await index.points(await index.model_in_use()).delete({"gone": 4})
    report = await command.run("--model", new)
    assert (report["removed"], report["documents"]) == (1, 10)
    assert await contents(index, new) == by_id(documents(10))


async def test_nothing_to_do_is_said_in_one_line(command: ReindexCommand):
    line = await command.fail("--rollback")
    assert line == "textmatch: no previous collection is kept, so a rollback is not possible"
    assert "exactly one of" in await command.fail("--cancel", "--drop-old")

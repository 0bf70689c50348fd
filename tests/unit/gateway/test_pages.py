"""The pages: what they load, what they may do, and what the console's scripts make of answers."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import serve_gateway
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.runtime.auth import ApiKeys
from textmatch.score_fusion import ScoreComponents, ScoreModel
from textmatch.v1 import matcher_service_pb2 as pb

CONSOLE = Path(__file__).parents[3] / "services" / "gateway" / "console"
DOM = Path(__file__).parents[2] / "support" / "dom.mjs"
NODE = shutil.which("node")

# Ways to run text, and to keep a key.
FORBIDDEN = re.compile(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|cookie|Storage")

needs_node = pytest.mark.skipif(NODE is None, reason="needs node")


async def test_the_page_shows_every_route_and_loads_nothing(http: httpx.AsyncClient):
    document = (await http.get("/openapi.json")).json()
    page = await http.get("/docs")
    assert page.status_code == 200
    assert all(f" {path}</code>" in page.text for path in document["paths"])
    assert all(f'id="{name}"' in page.text for name in document["components"]["schemas"])
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page.text
    assert not re.search(r"(src|href)=.(https?:)?//", page.text)


async def test_the_console_loads_its_own_files_only(http: httpx.AsyncClient):
    page = await http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for file in CONSOLE.iterdir():
        loaded = page if file.name == "index.html" else await http.get(f"/console/{file.name}")
        assert loaded.text == file.read_text()
        # No other host; the namespace of SVG is a name, not an address.
        assert set(re.findall(r"https?://[^\"' ]+", loaded.text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|cookie|Storage", loaded.text
        )
    assert set(re.findall(r'(?:src|href)="(/[^"]+)"', page.text)) == {"/console/style.css", "/console/app.js"}
    assert not re.search(r"<script>|<style>|\son\w+=|\sstyle=", page.text)


@pytest.mark.parametrize("path", ["/", "/console/app.js", "/console/style.css"])
async def test_the_console_may_run_only_its_own_scripts(http: httpx.AsyncClient, path: str):
    headers = (await http.get(path)).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in headers


async def test_the_console_can_be_off(matcher_server: RunningServer, encoder_server: RunningServer):
    async with (
        serve_gateway(matcher_server.address, encoder_server.address, has_console=False) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        for path in ("/", "/console/app.js"):
            assert (await http.get(path)).status_code == 404


async def test_a_file_of_the_console_is_no_way_to_other_files(http: httpx.AsyncClient):
    for path in ("/console/../pages.py", "/console/%2e%2e/pages.py", "/console/index.html", "/console/"):
        assert (await http.get(path)).status_code == 404


def run_script(tmp_path: Path, script: str) -> Any:
    """What a module prints as JSON. It imports the console's modules by `./NAME`."""
    for file in [*CONSOLE.glob("*.js"), CONSOLE / "index.html", DOM]:
        shutil.copy(file, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "main.js").write_text(script)
    assert NODE
    done = subprocess.run(
        [NODE, tmp_path / "main.js"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_every_text_is_there_in_both_languages(tmp_path: Path):
    strings = run_script(
        tmp_path, 'import {STRINGS} from "./strings.js"; console.log(JSON.stringify(STRINGS));'
    )
    assert strings["en"].keys() == strings["zh"].keys()
    for key, text in strings["en"].items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", strings["zh"][key]))
    page, script = (CONSOLE / "index.html").read_text(), (CONSOLE / "app.js").read_text()
    used = re.findall(r'data-(?:text|label)="(\w+)"', page) + re.findall(r'\bt\("(\w+)"', script)
    assert set(used) <= strings["en"].keys()


@needs_node
@pytest.mark.parametrize(
    ("query", "text", "marked"),
    [
        ("Delete a folder", "how to delete the FOLDER", ["delete", "FOLDER"]),
        ("删除文件夹", "怎样删除一个文件夹?", ["删除", "文件夹"]),
        ("git 回退", "用git回退一次提交", ["git回退"]),
        ("<b>", "<b>bold</b>", ["b", "b"]),
        ("cat", "concatenate", []),
    ],
)
def test_what_a_match_has_in_common_with_the_query_is_marked(
    tmp_path: Path, query: str, text: str, marked: list[str]
):
    call = f"markedParts({json.dumps(query)}, {json.dumps(text)})"
    parts = run_script(tmp_path, f'import * as t from "./text.js"; console.log(JSON.stringify(t.{call}));')
    assert [part["text"] for part in parts if part["isMarked"]] == marked
    assert "".join(part["text"] for part in parts) == text


@needs_node
def test_places_of_passages_count_characters_as_python_does(tmp_path: Path):
    text = "🐘 one. two 🐘🐘 three."
    start, end = text.index("two"), text.index(" three")
    place = f"{json.dumps(text)}, {{start: {start}, end: {end}}}"
    found = f"[t.passageParts({place}), t.excerpt({place})]"
    script = f'import * as t from "./text.js"; console.log(JSON.stringify({found}));'
    parts, excerpt = run_script(tmp_path, script)
    assert [part["text"] for part in parts if part["isMarked"]] == [text[start:end]] == [excerpt]
    assert "".join(part["text"] for part in parts) == text


@needs_node
@pytest.mark.parametrize("pair", [None, 0.0, 0.73, 1.0])
def test_the_parts_of_a_score_add_up_to_the_score(tmp_path: Path, pair: float | None):
    weights = {"intercept": -4.0, "cosine": 5.0, "lexical": 2.0, "pair": 0.8}
    explanation = json.dumps(
        {"cosine": 0.7, "lexical": 0.2, "pair_classifier_score": None, "weights": weights}
    )
    call = f"scoreParts({explanation}, {json.dumps(pair)})"
    shown = run_script(tmp_path, f'import * as t from "./text.js"; console.log(JSON.stringify(t.{call}));')
    logit = ScoreModel(**weights).logit(ScoreComponents(0.7, 0.2, pair))
    assert sum(part["product"] for part in shown["parts"]) == pytest.approx(logit, abs=1e-4)


@needs_node
def test_csv_is_read_in_pieces_of_any_size(tmp_path: Path):
    content = '\ufeffid,text,year\r\na,"one, ""two""\nthree",2024\r\n\r\nb,四,\r\nc,"",x'
    script = f"""
    import {{CsvDocuments}} from "./text.js";
    const found = [];
    for (const size of [1, 2, 7, 1000]) {{
      const reader = new CsvDocuments(), lines = [];
      const content = {json.dumps(content)};
      for (let at = 0; at < content.length; at += size) {{
        lines.push(...reader.push(content.slice(at, at + size)));
      }}
      found.push([...lines, ...reader.end()].map((line) => JSON.parse(line)));
    }}
    console.log(JSON.stringify(found));"""
    expected = [
        {"id": "a", "text": 'one, "two"\nthree', "attributes": {"year": "2024"}},
        {"id": "b", "text": "四", "attributes": {}},
        {"id": "c", "text": "", "attributes": {"year": "x"}},
    ]
    assert run_script(tmp_path, script) == [expected] * 4


VISIT = """
import {open, settled} from "./dom.mjs";
const page = await open(%s, "%s");
await import("./app.js");
await settled();
const $ = (id) => page.getElementById(id);
const submit = async (form, values) => {
  for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
  form.requestSubmit();
  await settled();
};
%s
await settled();
console.log(JSON.stringify(seen));
process.exit(0);
"""


@needs_node
async def test_a_visit(http: httpx.AsyncClient, gateway_url: str, tmp_path: Path, matcher: ScriptedMatcher):
    """The scripts run over a small document object model, against a real gateway."""
    await http.put("/v1/collections/faq", json={})
    for one in ("p", "q"):
        matcher.documents[one] = pb.Document(id=one, text=f"text {one}", version=1)
    for one in ("x", "y"):
        matcher.dead_letters[one] = pb.DeadLetter(id=one, reason="TEXT_FAILED", error="<b>no</b>", text="t")
    steps = """
    const seen = {title: $("tab-search").textContent};
    seen.collections = $("collection").children.map((one) => one.value);
    $("collection").value = "faq";
    const content = "id,text,year\\na,<i>the cat</i> sits,2024\\nb,,1\\n";
    $("upload-form").elements.file.files = [new File([content], "a.csv")];
    await submit($("upload-form"), {});
    seen.upload = $("upload-result").textContent;
    seen.errors = $("upload-errors").textContent;
    const column = $("columns").children[0];
    await submit(column.querySelector("form"), {query: "the cat", where: "year = 2024"});
    seen.found = column.querySelector(".result").textContent;
    seen.marked = column.querySelectorAll("mark").map((one) => one.textContent);
    seen.rows = column.querySelectorAll("tr").length;
    $("compare").checked = true;
    $("compare").dispatch("change");
    seen.columns = $("columns").children.length;
    await submit($("pair-form"), {first: "four", second: "fo"});
    seen.pair = $("pair-result").textContent;
    await submit($("duplicates-form"), {min_score: "0.7", where: "year = 2024", against: "other"});
    seen.pairs = $("duplicate-pairs").textContent;
    seen.compared = $("duplicates-result").textContent;
    $("tab-collections").dispatch("click");
    await settled();
    seen.table = $("collection-table").textContent;
    seen.models = $("model-table").textContent;
    $("tab-queue").dispatch("click");
    await settled();
    seen.queue = $("queue-numbers").textContent;
    $("show-letters").dispatch("click");
    await settled();
    seen.letters = $("letter-table").textContent;
    $("letter-table").querySelectorAll("button")[0].dispatch("click");
    await settled();
    seen.replayed = $("letter-result").textContent;
    seen.left = $("letter-table").textContent;
    await submit($("state-form"), {id: "a"});
    seen.state = $("state-result").textContent;
    await submit(column.querySelector("form"), {query: "the cat", where: "year ="});
    seen.problem = $("problem").textContent;
    $("language").dispatch("click");
    seen.chinese = $("tab-search").textContent;
    """
    seen = await asyncio.to_thread(run_script, tmp_path, VISIT % (json.dumps(gateway_url), "en", steps))
    assert (seen["title"], seen["chinese"]) == ("Search", "搜索")
    assert seen["collections"] == ["default", "faq"]
    assert seen["upload"] == "1 accepted, 0 unchanged, 1 rejected, 0 failed Done."
    assert seen["errors"].startswith("Document 2, b: ")
    assert matcher.match_requests[0].collection == "faq"
    assert matcher.match_requests[0].options.explain
    assert "<i>the cat</i> sits" in seen["found"]
    assert (seen["marked"], seen["columns"]) == (["the", "cat"], 2)
    assert seen["rows"] > 3
    assert "0.500" in seen["pair"]
    [searched] = matcher.duplicate_requests
    assert (searched.collection, searched.against) == ("faq", "other")
    assert searched.filter.must[0].match.field == "year"
    assert "p · q0.75 0.750text ptext q" in seen["pairs"]
    assert seen["compared"] == "2 pairs; 3 documents compared. Done."
    assert "faq" in seen["table"]
    assert "tiny" in seen["models"]
    assert "Queued0" in seen["queue"]
    assert seen["letters"].startswith("Send these 2 again")
    assert "<b>no</b>" in seen["letters"]
    assert (seen["replayed"], seen["left"]) == ("2 queued again.", "")
    assert matcher.replayed == ["x", "y"]
    assert "INDEXED" in seen["state"]
    assert "where: is invalid" in seen["problem"]


@needs_node
async def test_a_visit_with_keys(encoder_server: RunningServer, tmp_path: Path):
    key = "reader-key-0123456789abcdef"
    steps = f"""
    const seen = {{before: $("problem").textContent}};
    $("key").value = "{key}";
    $("key").dispatch("input");
    $("key").dispatch("change");
    await settled();
    seen.after = $("problem").textContent;
    """
    keys = tmp_path / "keys"
    keys.write_text(f"reader read {key}\n")
    server = RunningServer.of_matcher(ScriptedMatcher(), api_keys=ApiKeys(keys))
    try:
        async with serve_gateway(server.address, encoder_server.address) as url:
            script = VISIT % (json.dumps(url), "zh-CN", steps)
            seen = await asyncio.to_thread(run_script, tmp_path, script)
    finally:
        server.stop()
    assert seen["before"].startswith("服务器需要 API 密钥。")
    assert seen["after"] == ""

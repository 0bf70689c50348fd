"""Clicks through the console in Chromium, against a stack that asks for API keys."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import CHROMIUM, running_chromium
from tests.support.stack import Stack, running_stack, wait_until
from textmatch.client import CollectionConfig, PayloadIndex, TextMatchClient
from textmatch.documents import Document
from textmatch.models.model_resolver import DEFAULT_BI_ENCODER, DEFAULT_CROSS_ENCODER
from textmatch.queue.dead_letters import DeadLetters, of_document
from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import connect
from textmatch.queue.registry import Registry

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

COLLECTION = "faq"
KEY = "console-key-0123456789abcdef"
WRONG_KEY = "guessed-key-0123456789abcdef"
SERVICE_KEY = "service-key-0123456789abcdef"
WAIT_MS = 30_000

PASSPORTS = "# 🐘 Passports\n\nA lost passport is reported to the embassy."
FILLER = "The warehouse is swept on Mondays, and the shelves are counted once a month. " * 40
DOCUMENTS = [
    {"id": "rm", "text": "delete a folder and everything in it", "attributes": {"year": 2024}},
    {"id": "cp", "text": "copy a file to another place", "attributes": {"year": 2020}},
    {"id": "folder-zh", "text": "移除目录以及其中的全部内容", "attributes": {"year": 2024}},
    {"id": "disk-zh", "text": "这台电脑的硬盘坏了", "attributes": {"year": 2021}},
    {"id": "html", "text": "<b>bold</b> <img src=x onerror=alert(1)> markup", "attributes": {"year": 2019}},
    {"id": "manual", "text": f"{FILLER}\n\n{PASSPORTS}\n\n# Shelves\n\n{FILLER}"},
]
FAILED = ["failed-1", "failed-2", "failed-3"]

LEVEL_AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]
NARROW_PX = 320


@pytest.fixture(scope="module")
def console_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with the default models, which read Chinese and English, and some documents."""
    directory = tmp_path_factory.mktemp("console")
    keys = directory / "keys"
    keys.write_text(f"console admin {KEY}\nservice read {SERVICE_KEY}\n")
    environment = {
        "TEXTMATCH_BI_ENCODER": DEFAULT_BI_ENCODER,
        "TEXTMATCH_CROSS_ENCODER": DEFAULT_CROSS_ENCODER,
        "TEXTMATCH_API_KEYS_FILE": str(keys),
        "TEXTMATCH_ENCODER_API_KEY": SERVICE_KEY,
    }
    with running_stack(directory / "data", environment) as running:
        address = running.file["matcher"]
        with TextMatchClient(address, api_key=KEY, collection=COLLECTION, timeout_seconds=30) as client:
            config = CollectionConfig(COLLECTION, payload_indexes=(PayloadIndex("year", "integer"),))
            client.create_collection(config)
            assert client.ingest_all(DOCUMENTS, wait=True).accepted == len(DOCUMENTS)
        asyncio.run(_bury(running.file["redis_url"], running.file["installation"]))
        yield running


async def _bury(redis_url: str, installation: str) -> None:
    """Leave documents as a worker does whose encoder crashed on them; the next try succeeds."""
    async with connect(redis_url) as redis:
        registry = Registry(redis, Keys(installation))
        config = await registry.find(COLLECTION)
        assert config is not None
        letters = DeadLetters(redis, registry.keys_of(config).letters)
        await letters.add(
            [
                of_document(
                    Document(one, f"<i>text</i> of {one}", {}, 7), "TEXT_FAILED", "EncoderCrashed: gone"
                )
                for one in FAILED
            ]
        )


@pytest.fixture(scope="module")
def browser(console_stack: Stack) -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with running_chromium() as running:
        yield running


def open_console(browser: Browser, stack: Stack, locale: str, key: str = KEY) -> Page:
    """A page of a person with this language, who has typed a key."""
    context = browser.new_context(locale=locale, base_url=f"http://{stack.file['gateway']}")
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("pageerror", lambda error: pytest.fail(f"the page failed: {error}"))
    page.goto("/")
    if key:
        field = page.locator("#key")
        field.fill(key)
        field.blur()
    return page


@pytest.fixture
def page(browser: Browser, console_stack: Stack) -> Iterator[Page]:
    """The console in English, with the collection chosen."""
    opened = open_console(browser, console_stack, "en-GB")
    opened.get_by_role("combobox", name="Collection").select_option(COLLECTION)
    yield opened
    opened.context.close()


def search(page: Page, query: str, *, column: int = 0, **fields: str) -> Locator:
    """Fill a search form and press Enter; returns where its answer is."""
    form = page.locator("#columns form").nth(column)
    for label, value in fields.items():
        form.get_by_label(label).fill(value)
    form.locator("[name=query]").fill(query)
    form.locator("[name=query]").press("Enter")
    result = page.locator("#columns .result").nth(column)
    expect(result.locator(".matches > li").first).to_be_visible(timeout=WAIT_MS)
    return result


def wait_for_index(page: Page, document_id: str) -> None:
    """Ask the queue view for the state of a document until it is searchable."""
    page.get_by_role("tab", name="Queue").click()
    page.get_by_label("Id of a document").fill(document_id)

    def is_indexed() -> bool:
        with page.expect_response(re.compile("/status[?]document_id=")):
            page.get_by_role("button", name="Find").click()
        expect(page.locator("#state-result")).to_contain_text("State: ")
        return "INDEXED" in page.locator("#state-result").inner_text()

    wait_until(is_indexed, f"{document_id} to be searchable")


def test_a_search_in_english_shows_what_matches_and_why(page: Page):
    page.get_by_label("Rerank").select_option("cross-encoder")
    result = search(page, "remove a folder", Filter="year > 2023")
    first = result.get_by_role("listitem").first
    expect(first.get_by_role("heading")).to_have_text("rm")
    expect(first.locator("mark")).to_have_text(["a", "folder"])
    score = float(first.get_by_role("meter", name="Score").get_attribute("value") or "")
    assert 0 < score <= 1
    expect(first.locator(".head")).to_contain_text(f"{score:.3f}")
    expect(result.get_by_role("heading", name="cp")).to_have_count(0)
    expect(first.get_by_text("year: 2024")).to_be_visible()
    expect(result.get_by_role("img", name=re.compile("Time of the stages: encode"))).to_be_visible()

    expect(first.get_by_role("table")).to_be_hidden()
    first.get_by_text("Why this score").click()
    for part in ("Cosine", "Lexical (BM25)", "Pair score", "Intercept", "Calibrated score"):
        expect(first.get_by_role("row", name=part)).to_be_visible()
    shown = first.get_by_role("row", name="Calibrated score").get_by_role("cell").nth(1)
    assert float(shown.inner_text()) == pytest.approx(score, abs=0.002)


def test_a_search_in_chinese_in_a_chinese_browser(browser: Browser, console_stack: Stack):
    page = open_console(browser, console_stack, "zh-CN")
    page.get_by_role("combobox", name="集合").select_option(COLLECTION)
    form = page.locator("#columns form")
    form.get_by_label("查询").fill("如何删除一个目录")
    form.get_by_role("button", name="搜索").click()
    first = page.locator(".matches > li").first
    expect(first.get_by_role("heading")).to_have_text("folder-zh")
    expect(first.locator("mark").first).to_have_text("目录")
    first.get_by_text("为什么是这个分数").click()
    expect(first.get_by_role("row", name="余弦相似度")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("tab", name="Collections")).to_be_visible()
    page.context.close()


def test_two_searches_side_by_side_with_different_settings(page: Page):
    page.get_by_label("Two searches side by side").check()
    page.get_by_label("Recall").nth(1).select_option("dense")
    page.get_by_label("Rerank").nth(0).select_option("cross-encoder")
    page.get_by_label("Rerank").nth(1).select_option("none")
    left = search(page, "my hard drive is broken")
    right = search(page, "my hard drive is broken", column=1)
    for result in (left, right):
        expect(result.get_by_role("heading").first).to_have_text("disk-zh")
    expect(left.get_by_text("recall: hybrid")).to_be_visible()
    expect(right.get_by_text("recall: dense")).to_be_visible()
    expect(left.get_by_text(re.compile(" [1-9][0-9]* scored by the cross-encoder"))).to_be_visible()
    expect(right.get_by_text(" 0 scored by the cross-encoder")).to_be_visible()
    first, second = left.bounding_box(), right.bounding_box()
    assert first
    assert second
    assert first["x"] + first["width"] <= second["x"], "the second is not next to the first"
    page.get_by_label("Two searches side by side").uncheck()
    expect(page.locator("#columns form")).to_have_count(1)


def test_the_passage_of_a_long_document_is_shown_with_its_place(page: Page):
    result = search(page, "where do I report a lost passport")
    first = result.get_by_role("listitem").first
    expect(first.get_by_role("heading")).to_have_text("manual")
    text = str(DOCUMENTS[-1]["text"])
    shown = first.locator("p").first.inner_text()
    assert "A lost passport is reported" in shown
    assert len(shown) < len(text) / 2
    place = first.get_by_text(
        re.compile(r"Passage: characters [\d,]+ to [\d,]+ of the document")
    ).inner_text()
    start, end = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", place))
    assert text[start:end].split() == shown.split()
    first.get_by_text("The whole document").click()
    whole = first.get_by_role("region", name="The whole document")
    expect(whole).to_contain_text("The warehouse is swept on Mondays")
    expect(whole).to_have_text(text, use_inner_text=False)
    assert whole.locator("mark").text_content() == text[start:end]
    expect(whole.locator("mark")).to_be_in_viewport()


def test_a_long_query_says_which_of_its_passages_fits(page: Page):
    result = search(page, f"{FILLER}\n\nWhere do I report a lost passport?\n\n{FILLER}")
    expect(result.get_by_text("The query is longer than the model reads")).to_be_visible()
    expect(
        result.get_by_text(re.compile(r"It fits characters [\d,]+ to [\d,]+ of the query: “.")).first
    ).to_be_visible()


def test_the_text_of_documents_is_never_html(page: Page):
    result = search(page, "<b>bold</b> markup")
    first = result.get_by_role("listitem").first
    expect(first.get_by_text("<b>bold</b> <img src=x onerror=alert(1)> markup")).to_be_visible()
    assert page.locator("main b, main img").count() == 0


def test_a_mistake_in_a_filter_is_shown_with_its_place(page: Page):
    form = page.locator("#columns form")
    form.get_by_label("Filter").fill("year >")
    form.get_by_label("Query").fill("a folder")
    form.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("where: is invalid")


def test_a_file_is_uploaded_with_progress_and_its_bad_lines_are_named(page: Page, tmp_path: Path):
    file = tmp_path / "documents.csv"
    lines = [f"up-{number},the uploaded text {number},2025" for number in range(1_200)]
    lines[700] = "up-700,,2025"
    file.write_text("id,text,year\n" + "\n".join(lines))
    page.get_by_role("tab", name="Upload").click()
    expect(page.get_by_role("progressbar")).to_be_hidden()
    page.evaluate(
        """() => {
          window.shares = [];
          const bar = document.querySelector("progress");
          const note = () => window.shares.push(bar.value);
          new MutationObserver(note).observe(bar, { attributes: true, attributeFilter: ["value"] });
        }"""
    )
    page.get_by_label("File").set_input_files(file)
    page.locator("#upload-form").get_by_role("button", name="Upload").click()
    expect(page.get_by_text("1,199 accepted, 0 unchanged, 1 rejected, 0 failed Done.")).to_be_visible()
    shares = page.evaluate("window.shares")
    assert shares == sorted(shares)
    assert len({share for share in shares if share > 0}) > 1
    assert shares[-1] == 1
    expect(page.get_by_role("progressbar", name="Progress of the upload")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="Document 701, up-700: ")).to_be_visible()

    wait_for_index(page, "up-1199")
    expect(page.locator("#state-result")).to_contain_text("the uploaded text 1199")


def test_json_lines_are_uploaded_by_keyboard(page: Page, tmp_path: Path):
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"line-{one}", "text": f"第{one}行"}) for one in range(3)))
    page.get_by_role("tab", name="Search").focus()
    for name in ("Score a pair", "Duplicates", "Collections", "Queue", "Upload"):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=name)).to_be_focused()
    page.get_by_label("File").set_input_files(file)
    page.get_by_label("File").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("3 accepted, 0 unchanged, 0 rejected, 0 failed Done.")).to_be_visible()


def test_a_dead_letter_is_listed_and_sent_again(page: Page):
    page.get_by_role("tab", name="Queue").click()
    page.get_by_role("button", name="Show dead letters").click()
    row = page.get_by_role("row", name=FAILED[0])
    for shown in ("TEXT_FAILED", "EncoderCrashed: gone", f"<i>text</i> of {FAILED[0]}"):
        expect(row.get_by_text(shown)).to_be_visible()
    row.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("1 queued again.")).to_be_visible()
    expect(row).to_have_count(0)
    expect(page.get_by_role("row", name=FAILED[1])).to_be_visible()
    wait_for_index(page, FAILED[0])


def test_a_wrong_key_is_said_and_a_right_one_helps(browser: Browser, console_stack: Stack):
    page = open_console(browser, console_stack, "en-GB", WRONG_KEY)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The servers need an API key.")
    expect(alert).to_contain_text("401")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").blur()
    expect(alert).to_be_empty()
    page.get_by_role("combobox", name="Collection").select_option(COLLECTION)
    expect(search(page, "copy a file").get_by_role("heading").first).to_have_text("cp")

    # The key is nowhere but in the memory of the page.
    assert page.context.storage_state() == {"cookies": [], "origins": []}
    page.reload()
    assert page.get_by_label("API key").input_value() == ""
    expect(alert).to_contain_text("The servers need an API key.")
    page.context.close()


def test_a_pair_of_texts_is_scored(page: Page):
    page.get_by_role("tab", name="Score a pair").click()
    scores = []
    for second in ("移除目录以及其中的全部内容", "a cat sleeps"):
        page.get_by_label("First text").fill("delete a directory")
        page.get_by_label("Second text").fill(second)
        with page.expect_response("**/v1/score"):
            page.get_by_role("button", name="Score", exact=True).click()
        meter = page.locator("#pair-result").get_by_role("meter", name="Score")
        expect(meter).to_be_visible()
        scores.append(float(meter.get_attribute("value") or ""))
    assert scores[0] > scores[1]


def test_duplicates_are_browsed_page_by_page(page: Page, tmp_path: Path):
    twins = [
        (f"{side}-{number}", f"locker {number} of hall {number % 7}") for number in range(60) for side in "ab"
    ]
    file = tmp_path / "twins.jsonl"
    lines = [json.dumps({"id": one, "text": text, "attributes": {"twin": True}}) for one, text in twins]
    file.write_text("\n".join(lines))
    page.get_by_role("tab", name="Upload").click()
    page.get_by_label("File").set_input_files(file)
    page.locator("#upload-form").get_by_role("button", name="Upload").click()
    expect(page.get_by_text("120 accepted, 0 unchanged, 0 rejected, 0 failed Done.")).to_be_visible()
    wait_for_index(page, twins[-1][0])

    page.get_by_role("tab", name="Duplicates").click()
    form = page.locator("#duplicates-form")
    form.get_by_label("Filter").fill("twin = true")
    form.get_by_label("Score the pairs by the cross-encoder").uncheck()
    form.get_by_role("button", name="Find duplicates").click()
    pairs = page.locator("#duplicate-pairs > li")
    more, done = page.get_by_role("button", name="More"), page.get_by_text("120 documents compared. Done.")
    pages = 1
    expect(done.or_(more)).to_be_visible()
    while more.is_visible():
        more.click()
        pages += 1
        expect(done.or_(more)).to_be_visible()
    assert pages > 1
    found = [frozenset(one.split(" · ")) for one in pairs.get_by_role("heading").all_inner_texts()]
    assert len(found) == len(set(found))
    assert {frozenset((f"a-{number}", f"b-{number}")) for number in range(60)} <= set(found)

    form.get_by_label("Filter").fill("twin =")
    form.get_by_role("button", name="Find duplicates").click()
    expect(page.get_by_role("alert")).to_contain_text("where: is invalid")
    expect(pairs).to_have_count(0)


def check_accessibility(page: Page, view: str) -> None:
    """No violation of WCAG 2.2 AA in light and dark, and no line that needs scrolling on a narrow screen."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"runOnly": LEVEL_AA, "resultTypes": ["violations"]})
        assert found.response["passes"], "nothing was checked"
        violations = [
            f"{one['id']}: {node['html']} {node['failureSummary']}"
            for one in found.response["violations"]
            for node in one["nodes"]
        ]
        assert violations == [], f"{view}, {scheme}"
    wide = page.viewport_size
    assert wide
    page.set_viewport_size({"width": NARROW_PX, "height": wide["height"]})
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW_PX, view
    page.set_viewport_size(wide)


def test_every_view_is_accessible_in_light_and_dark(page: Page, tmp_path: Path):
    search(page, "remove a folder")
    page.get_by_text("Why this score").first.click()
    page.get_by_label("Two searches side by side").check()
    search(page, "report a lost passport", column=1)
    page.get_by_text("The whole document").last.click()
    check_accessibility(page, "search")

    page.get_by_role("tab", name="Score a pair").click()
    page.get_by_label("First text").fill("a")
    page.get_by_label("Second text").fill("b")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#pair-result").get_by_role("meter")).to_be_visible()
    check_accessibility(page, "pair")

    page.get_by_role("tab", name="Duplicates").click()
    page.get_by_label("Least score").last.fill("0.05")
    page.get_by_role("button", name="Find duplicates").click()
    expect(page.locator("#duplicate-pairs > li").first).to_be_visible()
    check_accessibility(page, "duplicates")

    page.get_by_role("tab", name="Collections").click()
    expect(page.get_by_role("table").first).to_be_visible()
    check_accessibility(page, "collections")

    page.get_by_role("tab", name="Queue").click()
    page.get_by_role("button", name="Show dead letters").click()
    expect(page.get_by_role("button", name="Send again").first).to_be_visible()
    check_accessibility(page, "dead letters")

    page.get_by_role("tab", name="Upload").click()
    file = tmp_path / "bad.jsonl"
    file.write_text('{"id": "bad", "text": ""}')
    page.get_by_label("File").set_input_files(file)
    page.locator("#upload-form").get_by_role("button", name="Upload").click()
    expect(page.get_by_role("listitem").filter(has_text="Document 1, bad: ")).to_be_visible()
    check_accessibility(page, "upload")


def test_the_question_for_a_key_is_accessible(browser: Browser, console_stack: Stack):
    page = open_console(browser, console_stack, "zh-CN", key="")
    expect(page.get_by_role("alert")).to_contain_text("服务器需要 API 密钥")
    check_accessibility(page, "problem")
    page.context.close()

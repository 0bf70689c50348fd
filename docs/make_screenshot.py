"""Makes docs/console.png, the picture in README: `make screenshot`.

The gateway must serve the demo's documents. Chinese is only readable on a machine that has a Chinese font.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

_PICTURE = Path(__file__).with_name("console.png")
_QUERIES = ["copy a file with its metadata", "国外的信用卡能付吗"]
_WIDTH, _HEIGHT, _SCALE = 1_280, 1_000, 1.5
_RESULTS = 2
_MARGIN = 12
_WAIT_MS = 120_000


def main(
    url: Annotated[str, typer.Option(help="Of the gateway.")] = "http://127.0.0.1:8080",
    query: Annotated[list[str], typer.Option(help="Twice: one for each side.")] = _QUERIES,
) -> None:
    """Search for two queries side by side, show why the best match has its score, and take the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": _WIDTH, "height": _HEIGHT}, device_scale_factor=_SCALE, locale="en-GB"
        )
        page.set_default_timeout(_WAIT_MS)
        page.goto(url)
        page.get_by_label("Two searches side by side").check()
        for column, text in enumerate(query):
            _search(page, column, text)
        page.evaluate("document.activeElement.blur()")
        shot = page.screenshot(full_page=True)
        # From the tabs to the last match.
        tabs, last = page.get_by_role("tablist").bounding_box(), page.locator("main").bounding_box()
        browser.close()
    if tabs is None or last is None:
        raise RuntimeError("the page is empty")
    ends = tabs["y"] - _MARGIN, last["y"] + last["height"] + _MARGIN
    place = (0, round(ends[0] * _SCALE), round(_WIDTH * _SCALE), round(ends[1] * _SCALE))
    picture = Image.open(io.BytesIO(shot)).convert("RGB").crop(place)
    # With a palette, the file is a third as large.
    picture.quantize(method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(_PICTURE, optimize=True)
    typer.echo(f"{_PICTURE}: {_PICTURE.stat().st_size / 1000:.0f} kB")


def _search(page: Page, column: int, text: str) -> None:
    form = page.locator("#columns form").nth(column)
    form.get_by_label("Results").fill(str(_RESULTS))
    form.get_by_label("Rerank").select_option("cross-encoder")
    form.get_by_label("Query").fill(text)
    form.get_by_role("button", name="Search").click()
    found = page.locator("#columns .result").nth(column)
    expect(found.locator(".matches > li")).to_have_count(_RESULTS, timeout=_WAIT_MS)
    found.get_by_text("Why this score").first.click()


if __name__ == "__main__":
    typer.run(main)

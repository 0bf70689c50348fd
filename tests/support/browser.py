"""Chromium, without a screen, and what it shows of a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """The browser of this machine. Nothing is downloaded.

    No event loop can run in this thread until it is closed.
    """
    assert CHROMIUM
    with sync_playwright() as playwright:
        # Root can only run it without a sandbox, and CI is root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()

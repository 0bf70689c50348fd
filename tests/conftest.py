"""What all tests share: no network, no hub, and no quiet skipping where everything must be there."""

from __future__ import annotations

import os
import signal

import pytest

# Before anything imports a library that reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell starts background jobs with SIGINT ignored, and every process started here would inherit that:
# the tests of Ctrl-C would wait forever for what never arrives.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """In CI a test that would skip fails: there, no part may be missing."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "TEXTMATCH_QDRANT_URL" not in reason:
            report.outcome = "failed"
            report.longrepr = f"{reason} (skipping is not allowed in CI)"
    return report

"""What all tests share: no network, no hub, and no quiet skipping where everything must be there."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

from tests.support.client_programs import NO_REGISTRY

# Before anything imports a library that reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads of torch sleep while they wait. Otherwise they take a third of the time from tests beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell starts background jobs with SIGINT ignored, and every process started here would inherit that:
# the tests of Ctrl-C would wait forever for what never arrives.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine may be busy: how long an example takes is not what is tested.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """In CI a test that would skip fails, for there no part may be missing; and a failure is told at once.

    The summary at the end is not printed by a run that is ended from outside.
    """
    report = yield
    if not os.environ.get("CI"):
        return report
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "TEXTMATCH_QDRANT_" not in reason and NO_REGISTRY not in reason:
            report.outcome = "failed"
            report.longrepr = f"{reason} (skipping is not allowed in CI)"
    if report.failed:
        item.config.get_terminal_writer().write(f"\n{item.nodeid}, {call.when}: {report.longreprtext}\n")
    return report

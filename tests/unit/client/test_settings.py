"""The client runs where only the base packages are installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Packages of the extras, by the name that is imported.
EXTRAS = (
    "prometheus_client",
    "grpc_reflection.v1alpha",
    "opentelemetry",
    "celery",
    "redis",
    "qdrant_client",
    "torch",
)


@pytest.mark.parametrize("module", ["textmatch.client", "textmatch.cli.match", "textmatch.cli.ingest"])
def test_no_extra_is_imported(module: str):
    code = f"import {module}, sys; print([name for name in {EXTRAS} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

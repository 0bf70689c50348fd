"""Convert models for their engine in a process of its own: `python -m services.encoder.converting`.

OpenVINO holds Python's lock for seconds while it converts a model, and so does torch while it is imported,
which the native engine needs for a model that is not in the cache: even in a thread of their own they would
hold up all callers of the encoder. Converted here, the model lies in the cache, which the encoder loads it
from.
"""

from __future__ import annotations

import asyncio
import os
import sys

from services.encoder.locating import find_models
from services.encoder.served import ServedModels
from services.encoder.settings import from_environment

_CONVERTING_ENGINES = ("openvino", "native")
# The encoder that serves meanwhile goes first.
_NICENESS = 10


async def convert_apart(served: ServedModels) -> None:
    """Convert the models that the settings name, if those that are served were converted.

    What is wrong with them is not told here: whoever loads them next meets it too.
    """
    if all(model.engine not in _CONVERTING_ENGINES for model in served.all_models()):
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.encoder.converting",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def main() -> None:
    """Load the models, which leaves what their engine made of them in the cache."""
    os.nice(_NICENESS)
    settings = from_environment()
    found = find_models(settings)
    from services.encoder.loading import make_models

    make_models(found, settings)


if __name__ == "__main__":
    main()

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from textmatch.runtime.process import call_in_thread

_HANGING = """
import asyncio, sys, time
from textmatch.runtime.process import call_in_thread, end_process

async def main():
    try:
        await asyncio.wait_for(call_in_thread(lambda: time.sleep(60)), 0.2)
    except TimeoutError:
        pass

asyncio.run(main())
sys.exit(end_process(3))
"""


async def test_the_result_comes_back():
    assert await call_in_thread(lambda: threading.current_thread().daemon) is True


async def test_the_error_comes_back():
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await call_in_thread(fail)


async def test_a_cancelled_call_is_not_waited_for():
    opened = threading.Event()
    call = asyncio.create_task(call_in_thread(lambda: opened.wait(20)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    opened.set()


def test_the_process_ends_although_a_call_hangs():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _HANGING], check=False)
    assert done.returncode == 3
    assert time.monotonic() - started < 50

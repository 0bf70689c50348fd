"""The example in the documentation does what it says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from redis.asyncio import Redis

from tests.support.queue import take_queued
from tests.support.redis import RedisServer

PAGE = Path(__file__).parents[3] / "docs" / "ingest-messages.md"


async def test_the_example_publishes_a_document(redis_server: RedisServer, redis: Redis):
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    environment = {**os.environ, "TEXTMATCH_REDIS_URL": redis_server.url}
    command = [sys.executable, "-c", example]
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, timeout=60)
    [document] = await take_queued(redis)
    assert (document.id, document.text, document.attributes) == (
        "greeting",
        "你好 means hello",
        {"language": "zh"},
    )

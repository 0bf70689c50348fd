"""The example in the documentation does what it says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.queue import take_queued
from tests.support.redis import RedisServer

STUB = Path(__file__).with_name("redis_stub.mjs")
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


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
async def test_the_example_without_celery_publishes_a_document(redis: Redis):
    [example] = re.findall(r"```javascript\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    program = example.replace('from "redis"', f"from {json.dumps(STUB.as_uri())}")
    command = ["node", "--input-type=module", "--eval", program]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, timeout=60)
    key, task = json.loads(done.stdout)
    await redis.lpush(key, task)
    [document] = await take_queued(redis)
    assert (document.id, document.text, document.attributes) == (
        "greeting",
        "你好 means hello",
        {"language": "zh"},
    )

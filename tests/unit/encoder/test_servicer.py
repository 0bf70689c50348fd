from __future__ import annotations

from types import SimpleNamespace

from services.encoder.servicer import _call_context
from textmatch.runtime import logs
from textmatch.v1 import encoder_service_pb2 as pb

_CONTEXT = SimpleNamespace(time_remaining=lambda: None, peer=lambda: "ipv4:127.0.0.1:5000")


def test_a_caller_is_its_connection():
    assert _call_context(pb.PRIORITY_INTERACTIVE, _CONTEXT).caller == "ipv4:127.0.0.1:5000"


def test_a_caller_with_a_key_is_its_key_on_all_its_connections():
    token = logs.api_key_name.set("shop")
    try:
        assert _call_context(pb.PRIORITY_BULK, _CONTEXT).caller == "shop"
    finally:
        logs.api_key_name.reset(token)

"""Fixtures: a real server whose answers a test sets."""

from tests.support.scripted_servicer import client, encoder, encoder_server, matcher, matcher_server

__all__ = ["client", "encoder", "encoder_server", "matcher", "matcher_server"]

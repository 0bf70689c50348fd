"""Collections on the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.collection_config import INDEX_KINDS, CollectionConfig, PayloadIndex
from textmatch.errors import InvalidInput
from textmatch.types import CollectionSummary
from textmatch.v1 import collection_service_pb2 as pb
from textmatch.wire.collections import page_of, settings_from_proto, summary_from_proto, summary_to_proto

_TEXTS = st.text(max_size=10)
_CONFIGS = st.builds(
    CollectionConfig,
    name=_TEXTS,
    bi_encoder=_TEXTS,
    cross_encoder=_TEXTS,
    lexical=st.booleans(),
    payload_indexes=st.lists(
        st.builds(PayloadIndex, _TEXTS, st.sampled_from(INDEX_KINDS), st.booleans()), max_size=3
    ).map(tuple),
    created_at=st.integers(0, 2 * 10**9).map(float),
)


@given(_CONFIGS, _TEXTS, st.integers(0, 2**53))
def test_a_collection_survives_the_journey(config: CollectionConfig, model_id: str, count: int):
    summary = CollectionSummary(config, model_id, count)
    assert summary_from_proto(summary_to_proto(summary)) == summary


def test_what_belongs_to_the_installation_is_not_sent():
    config = CollectionConfig("faq", generation="5f3a9c1e", owner="secret")
    sent = summary_to_proto(CollectionSummary(config, "", 0))
    assert settings_from_proto(sent) == replace(config, generation="", owner="")
    assert b"5f3a9c1e" not in sent.SerializeToString()


def test_bm25_is_there_unless_it_is_left_out():
    assert settings_from_proto(pb.Collection(name="faq")).lexical
    assert not settings_from_proto(pb.Collection(name="faq", lexical=False)).lexical


@given(st.sets(st.sampled_from("abcdefgh")), st.integers(1, 4))
def test_pages_have_each_name_once(names: set[str], size: int):
    found, token = list[str](), ""
    while True:
        page, token = page_of(pb.ListCollectionsRequest(page_size=size, page_token=token), sorted(names))
        assert len(page) <= size
        found += page
        if not token:
            break
    assert found == sorted(names)


def test_a_negative_page_size_is_refused():
    with pytest.raises(InvalidInput, match="page_size"):
        page_of(pb.ListCollectionsRequest(page_size=-1), [])

"""Names and settings of collections."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.collection_config import (
    INDEX_KINDS,
    CollectionConfig,
    PayloadIndex,
    name_violation,
    normalized,
)
from textmatch.errors import InvalidInput

_NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True).filter(lambda name: "--" not in name)
_MODELS = st.from_regex(r"[A-Za-z0-9._-]{1,12}-[0-9a-f]{12}", fullmatch=True)
_GENERATIONS = st.from_regex(r"[0-9a-f]{8}", fullmatch=True)
_CONFIGS = st.builds(
    CollectionConfig,
    name=_NAMES,
    generation=_GENERATIONS,
    owner=st.text(),
    bi_encoder=st.text(),
    cross_encoder=st.text(),
    lexical=st.booleans(),
    payload_indexes=st.lists(
        st.builds(PayloadIndex, st.text(min_size=1), st.sampled_from(INDEX_KINDS), st.booleans())
    ).map(tuple),
    created_at=st.floats(0, 2e9),
)


@pytest.mark.parametrize("name", ["a", "0", "faq", "a-b_c", "x" * 63, "a-", "a_-_b"])
def test_names_that_are_allowed(name: str):
    assert name_violation("name", name) is None


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "_a", "a--b", "a.b", "a b", "x" * 64, "é", "a\n", "a/b", "*"]
)
def test_names_that_are_not(name: str):
    violation = name_violation("collection.name", name)
    assert violation is not None
    assert str(violation).startswith("collection.name: is ")


def test_no_name_means_default():
    assert (normalized(""), normalized("faq")) == ("default", "faq")
    with pytest.raises(InvalidInput, match="collection: is"):
        normalized("FAQ")


@given(_CONFIGS, _MODELS)
def test_a_physical_name_says_what_it_is_of(config: CollectionConfig, model: str):
    physical = config.physical(model)
    assert physical.startswith(f"{config.name}--{model}")
    assert config.model_of(physical) == model


@given(_CONFIGS, _CONFIGS, _MODELS)
def test_no_collection_takes_anothers_physical_collection_for_its_own(
    one: CollectionConfig, other: CollectionConfig, model: str
):
    is_same = (one.name, one.generation) == (other.name, other.generation)
    assert bool(one.model_of(other.physical(model))) == is_same
    # A role's alias is never taken for a physical collection.
    assert one.model_of(f"{one.name}--next") == ""


@given(_CONFIGS)
def test_settings_survive_as_json(config: CollectionConfig):
    assert CollectionConfig.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


@pytest.mark.parametrize("values", [None, 5, {}, {"payload_indexes": 5}, {"payload_indexes": [], "new": 1}])
def test_unreadable_settings_are_refused(values: object):
    with pytest.raises(InvalidInput, match="collection: has an unreadable entry"):
        CollectionConfig.from_mapping(values)


def test_a_new_collection_has_a_generation_of_its_own():
    settings = CollectionConfig("faq", bi_encoder="m")
    first, second = settings.created("owner", 5.0), settings.created("owner", 6.0)
    assert first.generation != second.generation
    assert first.has_settings_of(second)
    assert not first.has_settings_of(replace(second, lexical=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year:integer", PayloadIndex("year", "integer")),
        (" a.b:keyword ", PayloadIndex("a.b", "keyword")),
        ("customer:keyword:tenant", PayloadIndex("customer", "keyword", is_tenant=True)),
        ("tenant:bool", PayloadIndex("tenant", "bool")),
        ("odd:name:float", PayloadIndex("odd:name", "float")),
    ],
)
def test_an_index_is_parsed(text: str, expected: PayloadIndex):
    assert PayloadIndex.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("year", "must be attribute:kind"), ("year:date", "must be attribute:kind"), (":bool", "must be"),
     ("year:integer:tenant", "only keywords can be tenants"), ("", "must be")],
)  # fmt: skip
def test_an_impossible_index_is_refused(text: str, complaint: str):
    with pytest.raises(InvalidInput, match=complaint):
        PayloadIndex.parse(text)


def test_all_problems_of_settings_are_named():
    settings = CollectionConfig("No!", payload_indexes=(PayloadIndex("a", "bool"), PayloadIndex("b", "date")))
    with pytest.raises(InvalidInput) as caught:
        settings.check()
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["collection.name", "collection.payload_indexes[1]"]


@pytest.mark.parametrize(
    ("indexes", "complaint"),
    [
        (
            [PayloadIndex(f"f{n}", "bool") for n in range(65)],
            "payload_indexes: has 65 indexes; the limit is 64",
        ),
        ([PayloadIndex("好" * 86, "bool")], r"payload_indexes\[0\]: has an attribute of 258 bytes"),
    ],
)
def test_indexes_have_limits(indexes: list[PayloadIndex], complaint: str):
    with pytest.raises(InvalidInput, match=complaint):
        CollectionConfig("faq", payload_indexes=tuple(indexes)).check()
    CollectionConfig("faq", payload_indexes=(PayloadIndex("好" * 85, "bool"),) * 64).check()

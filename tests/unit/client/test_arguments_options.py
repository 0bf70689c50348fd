"""All options of all methods of both clients, by introspection: a new method is tested or fails here."""

from __future__ import annotations

import inspect
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.client_calls import ANSWERS, EXAMPLES, STREAMS, call
from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.client import AsyncTextMatchClient, TextMatchClient
from textmatch.client import asyncio as client_module
from textmatch.collection_config import CollectionConfig
from textmatch.errors import DeadlinePassed, InvalidInput
from textmatch.types import HealthState, MatchKeywords, MatchOptions


def methods_of(client_class: type) -> dict[str, Callable[..., Any]]:
    return {
        name: method
        for name, method in inspect.getmembers(client_class, inspect.isfunction)
        if not name.startswith("_")
    }


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """Parameters of a method, or of the constructor, with the options of a match where it takes them."""
    method = TextMatchClient.__init__ if name == "__init__" else methods_of(TextMatchClient)[name]
    found = dict(inspect.signature(method).parameters)
    del found["self"]
    if found.pop("options", None) is not None:
        option = inspect.Parameter
        found |= {name: option(name, option.KEYWORD_ONLY) for name in MatchKeywords.__annotations__}
    return found


def every_option() -> list[tuple[str, str]]:
    return [(method, option) for method in ("__init__", *EXAMPLES) for option in parameters_of(method)]


def call_with(client: Any, method: str, changed: dict[str, Any]) -> Any:
    """Call as in the example, with other values of some arguments."""
    examples = dict(zip(parameters_of(method), EXAMPLES[method], strict=False))
    answer = getattr(client, method)(**{**examples, **changed})
    return list(answer) if method in STREAMS else answer


def test_both_clients_have_the_same_methods_with_the_same_options():
    synchronous, by_asyncio = methods_of(TextMatchClient), methods_of(AsyncTextMatchClient)
    assert synchronous.keys() == by_asyncio.keys() == {*EXAMPLES, "close", "using"}
    for name, method in {**synchronous, "__init__": TextMatchClient.__init__}.items():
        other = AsyncTextMatchClient.__init__ if name == "__init__" else by_asyncio[name]
        here, there = inspect.signature(method).parameters, inspect.signature(other).parameters
        assert [(one.name, one.kind, one.default) for one in here.values()] == [
            (one.name, one.kind, one.default) for one in there.values()
        ]
        if name not in (*STREAMS, "using", "__init__"):
            assert inspect.iscoroutinefunction(other)


def test_keywords_of_a_match_are_its_options():
    assert MatchKeywords.__annotations__.keys() == MatchOptions.__dataclass_fields__.keys()


def test_a_client_of_another_caller_has_the_same_connections(
    client: TextMatchClient, matcher: ScriptedMatcher
):
    other = client.using(collection="faq", api_key="a-key", request_id="mine")
    other.match("the cat")
    assert matcher.match_requests[-1].collection == "faq"
    assert (matcher.metadata["authorization"], matcher.metadata["x-request-id"]) == ("Bearer a-key", "mine")
    other.using(collection="manuals").match("the cat")
    assert matcher.match_requests[-1].collection == "manuals"
    assert (matcher.metadata["authorization"], matcher.metadata["x-request-id"]) == ("Bearer a-key", "mine")
    client.match("the cat")
    assert matcher.match_requests[-1].collection == "default"
    assert matcher.metadata.keys() & {"authorization", "x-request-id"} == set()


@pytest.mark.parametrize("option", ["collection", "api_key", "request_id"])
def test_what_another_caller_uses_is_a_string(client: TextMatchClient, option: str):
    with pytest.raises(InvalidInput, match=rf"^{option}: is an int; it must be a string"):
        client.using(**{option: 1})
    with pytest.raises(TypeError, match=f"did you mean '{option}'"):
        client.using(**{f"{option}s": "a"})


@pytest.mark.parametrize("method", EXAMPLES)
def test_every_example_works(client: TextMatchClient, method: str):
    client.ingest_all([{"id": "a", "text": "the cat"}])
    client.create_collection(CollectionConfig("faq"))
    assert isinstance(call(client, method), ANSWERS[method])


@pytest.fixture
def lonely(client_class: type[TextMatchClient]) -> Iterator[TextMatchClient]:
    """Has no server: what is sent fails with ServerUnreachable."""
    with client_class("127.0.0.1:1", "127.0.0.1:1") as client:
        yield client


@pytest.mark.parametrize(("method", "option"), every_option())
def test_a_misspelt_option_names_the_nearest_one(
    lonely: TextMatchClient, client_class: type[TextMatchClient], method: str, option: str
):
    misspelt = option.replace("_", "") + "s"
    message = rf"^\w+\(\) has no option '{misspelt}'; did you mean '{option}'\?$"
    with pytest.raises(TypeError, match=message):
        client_class(**{misspelt: 1}) if method == "__init__" else call(lonely, method, **{misspelt: 1})


@pytest.mark.parametrize("method", [*EXAMPLES, "close"])
def test_an_option_like_no_other_is_refused_with_the_known_ones(lonely: TextMatchClient, method: str):
    known = [] if method == "close" else sorted(parameters_of(method))
    with pytest.raises(TypeError) as raised:
        getattr(lonely, method)(*EXAMPLES.get(method, ()), zyx=1)
    assert str(raised.value) == f"{method}() has no option 'zyx'; it has {', '.join(known) or 'none'}"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("filter", "where"),
        ("topk", "top_k"),
        ("limit", "top_k"),
        ("score_threshold", "min_score"),
        ("timeout", "timeout_seconds"),
    ],
)
@pytest.mark.parametrize("method", ["match", "batch_match"])
def test_names_of_other_libraries_are_known(lonely: TextMatchClient, method: str, given: str, meant: str):
    with pytest.raises(TypeError, match=f"has no option '{given}'; did you mean '{meant}'"):
        call(lonely, method, **{given: 1})


@pytest.mark.parametrize(("method", "option"), every_option())
def test_a_value_that_cannot_be_meant_is_named_and_nothing_is_sent(
    lonely: TextMatchClient,
    client_class: type[TextMatchClient],
    method: str,
    option: str,
):
    wrong = {option: object()}
    with pytest.raises(InvalidInput, match=rf"^{option}\b") as raised:
        client_class(**wrong) if method == "__init__" else call_with(lonely, method, wrong)
    assert re.search(r"it must be|is not a function", str(raised.value))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "5"])
@pytest.mark.parametrize("method", EXAMPLES)
def test_a_time_limit_is_a_number_of_seconds(lonely: TextMatchClient, method: str, value: Any):
    with pytest.raises(InvalidInput, match="^timeout_seconds: is"):
        call(lonely, method, timeout_seconds=value)


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("method", EXAMPLES)
def test_every_method_has_a_time_limit_of_its_own(
    client_class: type[TextMatchClient],
    silent_address: str,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
):
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.1)
    with client_class(silent_address, silent_address) as client:
        if method == "health":
            assert {one.state for one in client.health(timeout_seconds=0.2)} == {HealthState.UNREACHABLE}
            return
        with pytest.raises(DeadlinePassed, match=r"did not answer within 0\.2 seconds"):
            call(client, method, timeout_seconds=0.2)


@pytest.mark.parametrize("method", EXAMPLES)
def test_a_longer_time_limit_than_that_of_the_client_counts(
    client_class: type[TextMatchClient], matcher_server: Any, encoder_server: Any, method: str
):
    short = {"timeout_seconds": 1e-6, "bulk_timeout_seconds": 1e-6}
    with client_class(matcher_server.address, encoder_server.address, **short) as client:
        if method in ("wait_until_searchable", "get_document"):  # the queue is asked by the client's limit
            return
        client.create_collection(CollectionConfig("faq"), timeout_seconds=20)
        assert isinstance(call(client, method, timeout_seconds=20), ANSWERS[method])

"""The pages of a search for duplicates, as both clients read them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.client import TextMatchClient
from textmatch.client import asyncio as client_module
from textmatch.errors import DependencyUnavailable, InvalidInput, Overloaded, PermissionDenied


@pytest.fixture
def stored(client: TextMatchClient, matcher: ScriptedMatcher) -> list[str]:
    """The ids of documents that are stored, on pages of three. Neighbors are pairs."""
    matcher.page_limit = 3
    ids = [f"{number:02}" for number in range(10)]
    client.ingest_all({"id": one, "text": f"text {one}"} for one in ids)
    return ids


def pairs_of(pages: list) -> list[tuple[str, str]]:
    return [(pair.first.id, pair.second.id) for page in pages for pair in page]


def test_a_search_takes_as_many_calls_as_it_needs(
    client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]
):
    pages = list(client.find_duplicates())
    assert pairs_of(pages) == list(pairwise(stored))
    assert [page.compared_count for page in pages] == [3, 3, 3, 1]
    assert [page.is_last for page in pages] == [False, False, False, True]
    assert [page.resume_token for page in pages] == ["02", "05", "08", "09"]
    assert [one.resume_token for one in matcher.duplicate_requests] == ["", "05"]
    [pair, *_] = pages[0]
    assert (pair.first.text, pair.score, pair.rerank_score) == ("text 00", 0.75, None)


def test_a_search_goes_on_after_a_token(client: TextMatchClient, stored: list[str]):
    assert pairs_of(list(client.find_duplicates(resume_token=stored[7]))) == [("08", "09")]


def test_what_is_asked_for_is_sent(client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]):
    options = {"min_score": 0.75, "neighbors": 3, "rerank": False, "omit_text": True}
    list(client.using(collection="faq").find_duplicates(against="b", where="n = 1", **options))
    [request, *_] = matcher.duplicate_requests
    assert (request.collection, request.against, request.min_score) == ("faq", "b", 0.75)
    assert (request.neighbors, request.omit_rerank, request.omit_text) == (3, True, True)
    assert request.filter.must[0].match.field == "n"


def test_nothing_is_sent_before_the_results_are_read(
    client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str]
):
    pages = client.find_duplicates()
    assert matcher.duplicate_requests == []
    next(pages)
    assert len(matcher.duplicate_requests) == 1
    pages.close()


@pytest.mark.parametrize("calls", [0, 2])
def test_an_error_that_may_pass_costs_no_pair_and_repeats_none(
    client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str], calls: int
):
    pages = client.find_duplicates()
    found = [next(pages) for _ in range(calls)]
    matcher.call_errors.append(Overloaded("later", retry_delay_seconds=0.01))
    matcher.call_errors.append(DependencyUnavailable("the encoder does not answer"))
    found += list(pages)
    assert pairs_of(found) == list(pairwise(stored))
    assert not matcher.call_errors


def test_an_error_that_does_not_pass_is_raised(
    client: TextMatchClient, matcher: ScriptedMatcher, stored: list[str], monkeypatch: pytest.MonkeyPatch
):
    matcher.call_errors.append(PermissionDenied("no"))
    with pytest.raises(PermissionDenied):
        next(client.find_duplicates())
    monkeypatch.setattr(client_module, "_STALL_TIMEOUT_SECONDS", 0.01)
    matcher.call_errors.append(Overloaded("later", retry_delay_seconds=5.0))
    with pytest.raises(Overloaded):
        next(client.find_duplicates())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"min_score": 0}, "min_score: is 0"),
        ({"min_score": 1.1}, "min_score: is 1.1"),
        ({"min_score": "0.5"}, "min_score: is a str; it must be a number"),
        ({"neighbors": 0}, "neighbors: is 0; it must be 1 to 100"),
        ({"neighbors": 2.5}, "neighbors: is a float; it must be a whole number"),
        ({"rerank": None}, "rerank: is None; it must be True or False"),
        ({"resume_token": "x" * 513}, "resume_token: has 513 bytes"),
        ({"where": ["a"]}, "where: is a list; it must be a Filter, a condition or a string"),
        ({"against": ["b"]}, "against: is a list; it must be a string"),
    ],
)
def test_a_bad_option_is_named_before_anything_is_sent(
    client: TextMatchClient, matcher: ScriptedMatcher, options: dict, problem: str
):
    with pytest.raises(InvalidInput) as raised:
        client.find_duplicates(**options)
    assert problem in str(raised.value)
    assert matcher.duplicate_requests == []

"""Which roles hold after Redis has lost some changes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.collection_roles import CollectionRole, Roles

START = Roles(in_use="a", epoch=1)
# Each change of the roles of two collections, and what it makes of them; None if it is not possible.
CHANGES = {
    "start": lambda roles: replace(roles, next=_other(roles)) if not _others(roles) else None,
    "switch": lambda roles: Roles(roles.next, previous=roles.in_use) if roles.next else None,
    "roll back": lambda roles: Roles(roles.previous, previous=roles.in_use) if roles.previous else None,
    "abandon": lambda roles: Roles(roles.in_use, abandoned=_others(roles)) if _written(roles) else None,
    "resume": lambda roles: Roles(roles.in_use, next=roles.abandoned) if roles.abandoned else None,
    "drop": lambda roles: roles.without(_others(roles)) if _others(roles) else None,
}


def _other(roles: Roles) -> str:
    return "b" if roles.in_use == "a" else "a"


def _written(roles: Roles) -> str:
    return roles.next or roles.previous


def _others(roles: Roles) -> str:
    return _written(roles) or roles.abandoned


class Stored:
    """What a write that is acknowledged under some roles is in, and which collections are complete.

    A collection that is built is complete once it is switched to.
    """

    def __init__(self) -> None:
        self.roles = START
        self.incomplete: set[str] = set()
        self.history = [START]

    def change(self, name: str) -> None:
        changed = CHANGES[name](self.roles)
        if changed is None:
            return
        if name in ("start", "resume"):
            self.incomplete.add(changed.next)
        if name == "switch":
            # The copy is compared before.
            self.incomplete.discard(changed.in_use)
        self.incomplete.update({changed.abandoned} - {""})
        self.roles = replace(changed, epoch=self.roles.epoch + 1)
        self.history.append(self.roles)


@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=9), st.integers(1, 2))
def test_every_collection_that_may_answer_has_all_writes_after_redis_lost_changes(
    names: list[str], lost: int
):
    stored = Stored()
    for name in names:
        stored.change(name)
    ahead = stored.history[-1]
    behind = stored.history[max(0, len(stored.history) - 1 - lost)]
    # A write that is acknowledged before the loss is noticed is in these, unless they are gone.
    exist = {ahead.in_use, _others(ahead)} - {""}
    was_acknowledged = set(behind.written) <= exist
    incomplete = stored.incomplete | (exist - set(behind.written) if was_acknowledged else set())
    after = behind.after_loss(ahead)
    assert after.epoch > ahead.epoch
    assert after.in_use not in incomplete
    assert after.previous not in incomplete or not after.previous
    # What is being built is completed by the process that builds it, but only if it has missed nothing since.
    assert not after.next or after.next in behind.written or not was_acknowledged
    assert {after.in_use, _others(after)} - {""} == exist


def test_without_a_record_the_roles_are_those_of_qdrant():
    ahead = Roles("a", next="b", epoch=7)
    assert Roles().after_loss(ahead) == replace(ahead, epoch=8)


def test_a_lost_switch_keeps_the_collection_that_has_all_writes():
    ahead = Roles("new", previous="old", epoch=3)
    assert Roles("old", epoch=1).after_loss(ahead) == Roles("old", abandoned="new", epoch=4)
    # With both written, nothing is missing anywhere.
    assert Roles("old", next="new", epoch=2).after_loss(ahead) == replace(ahead, epoch=4)


def test_what_is_gone_has_no_role():
    roles = Roles("a", next="b", epoch=4)
    assert roles.without("b") == Roles("a", epoch=4)
    assert roles.without("a") == Roles(abandoned="b", epoch=4)
    assert roles.of(CollectionRole.NEXT) == "b"


@pytest.mark.parametrize("values", [None, "x", {"in_use": "a"}])
def test_an_unknown_form_is_no_roles(values: object):
    assert Roles.from_mapping(values) == Roles()
    assert Roles.from_mapping(START.to_mapping()) == START

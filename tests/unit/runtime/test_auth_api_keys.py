from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from textmatch.errors import ApiKeyInvalid, InvalidInput
from textmatch.runtime.auth import ApiKeys, Scope, parse

READER = "reader-key-0123456789"
OPERATOR = "operator-key-0123456789"
OPERATOR_DIGEST = hashlib.sha256(OPERATOR.encode()).hexdigest()
FILE = f"# who may call\n\nreader read {READER} 500\noperator admin sha256:{OPERATOR_DIGEST}\n"


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(FILE)
    return path


def test_keys_are_found_as_themselves_and_by_their_digest(path: Path):
    keys = ApiKeys(path)
    reader, operator = keys.find(READER), keys.find(OPERATOR)
    assert (reader.name, reader.tokens_per_second) == ("reader", 500)
    assert (operator.name, operator.tokens_per_second) == ("operator", None)
    assert [reader.allows(scope) for scope in Scope] == [True, False, False]
    assert all(operator.allows(scope) for scope in Scope)


@pytest.mark.parametrize("presented", ["", "other", OPERATOR_DIGEST, f"sha256:{OPERATOR_DIGEST}", "\udcff"])
def test_anything_else_is_refused(path: Path, presented: str):
    with pytest.raises(ApiKeyInvalid):
        ApiKeys(path).find(presented)


def test_two_keys_of_one_name_are_valid_while_one_replaces_the_other(path: Path):
    path.write_text(FILE + "reader read the-next-key-0123456789\n")
    keys = ApiKeys(path)
    assert keys.find(READER).name == keys.find("the-next-key-0123456789").name == "reader"


def test_a_changed_file_is_read_again(path: Path):
    clock = Clock()
    keys = ApiKeys(path, clock)
    path.write_text("reader read the-next-key-0123456789\n")
    clock.seconds += 1
    assert keys.find("the-next-key-0123456789").name == "reader"
    with pytest.raises(ApiKeyInvalid):
        keys.find(READER)


def test_a_link_that_is_turned_to_another_file_counts_as_a_change(path: Path, tmp_path: Path):
    """Kubernetes replaces a mounted Secret so."""
    clock = Clock()
    link, following = tmp_path / "link", tmp_path / "following"
    link.symlink_to(path)
    keys = ApiKeys(link, clock)
    following.write_text("reader read the-next-key-0123456789\n")
    (tmp_path / "new-link").symlink_to(following)
    os.replace(tmp_path / "new-link", link)  # noqa: PTH105
    clock.seconds += 1
    assert keys.find("the-next-key-0123456789").name == "reader"


def test_a_broken_or_missing_file_changes_nothing_and_is_logged(path: Path, caplog: pytest.LogCaptureFixture):
    clock = Clock()
    keys = ApiKeys(path, clock)
    for change in (lambda: path.write_text("reader read short\n"), path.unlink):
        change()
        clock.seconds += 1
        with caplog.at_level(logging.ERROR):
            assert keys.find(READER).name == "reader"
    errors = [record.error for record in caplog.records]  # type: ignore[attr-defined]
    assert len(errors) == 2
    assert "line 1: the key is shorter than 16 characters" in errors[0]
    assert "cannot be read" in errors[1]
    assert "short " not in errors[0].replace("shorter", "")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("reader read", "it must have a name, scopes"),
        ("reader read a b c d", "it must have a name, scopes"),
        ("reader look secret-0123456789abc", "scopes must be among read, write, admin"),
        ("reader read, secret-0123456789abc", "scopes must be among read, write, admin"),
        ("reader read secret", "shorter than 16 characters"),
        ("reader read sha256:secret-0123456789", "64 hexadecimal digits"),
        ("reader read secret-0123456789abc 0", "whole number above 0"),
        ("reader read secret-0123456789abc many", "whole number above 0"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_never_shown(line: str, reason: str):
    with pytest.raises(InvalidInput, match=reason) as raised:
        parse(f"# comment\n{line}\n")
    assert "line 2" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_without_keys_is_refused():
    with pytest.raises(InvalidInput, match="no keys"):
        parse("# nobody\n")


def test_a_key_may_be_limited_to_collections():
    limited, both, free = parse(
        f"a read {READER} collections=faq,man_uals\nb read {READER} 5 collections=faq\nc read {READER}\n"
    )
    assert (limited.collections, limited.tokens_per_second) == (frozenset({"faq", "man_uals"}), None)
    assert (both.collections, both.tokens_per_second) == (frozenset({"faq"}), 5.0)
    assert free.collections is None


@pytest.mark.parametrize("word", ["collections=", "collections=a,,b", "collections=Faq", "collections=a--b"])
def test_impossible_names_of_collections_are_refused(word: str):
    with pytest.raises(InvalidInput, match="line 1: collections= must be followed by names"):
        parse(f"a read {READER} {word}\n")

"""Checks of what the caller of a client gave: names of options, texts, lists, filters and limits.

Errors are raised before anything is sent. An unknown option is a TypeError, as in Python itself; a value that
cannot be meant is an InvalidInput that names the argument.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from types import NoneType
from typing import Any, TypeVar, get_args

from textmatch.documents import Document, id_violation, text_violation, version_violation
from textmatch.errors import InvalidInput, raise_violations
from textmatch.filter_syntax import parse
from textmatch.filters import Condition, FieldMatch, FieldTimeRange, Filter, HasId
from textmatch.types import MatchKeywords, MatchOptions, Recall, Rerank, Truncation
from textmatch.v1 import encoder_service_pb2 as encoder_pb
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.encoding import TRUNCATIONS
from textmatch.wire.filters import filter_to_proto
from textmatch.wire.matching import default_candidate_count, options_to_proto

Client = TypeVar("Client", bound=type)
Choice = TypeVar("Choice", bound=StrEnum)
TextPair = tuple[str, str]

# What other libraries call the options.
_OTHER_NAMES = {
    "filter": "where",
    "filters": "where",
    "query_filter": "where",
    "k": "top_k",
    "limit": "top_k",
    "n_results": "top_k",
    "size": "top_k",
    "score_threshold": "min_score",
    "threshold": "min_score",
    "deadline": "timeout_seconds",
    "timeout": "timeout_seconds",
}
_WHOLE_NUMBERS = ("top_k", "candidate_count", "rerank_depth")
_FLAGS = ("explain", "omit_text", "omit_attributes", "require_complete")
_RERANK_OF_KEYWORD = {None: Rerank.AUTO, False: Rerank.NONE, True: Rerank.CROSS_ENCODER}
_CONDITIONS = get_args(Condition)
_CLAUSES = ("must", "should", "must_not")


def with_checked_options(client: Client) -> Client:
    """Class decorator: every public method refuses unknown options, and names the nearest known one."""
    for name, method in list(vars(client).items()):
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            setattr(client, name, _checked(method, client.__name__ if name == "__init__" else name))
    return client


def _checked(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    parameters = inspect.signature(method).parameters
    known = {one.name for one in parameters.values() if one.kind is not one.VAR_KEYWORD} - {"self"}
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        known |= MatchKeywords.__annotations__.keys()

    def check(options: Mapping[str, Any]) -> None:
        for option in options.keys() - known:
            raise TypeError(_unknown_option(name, option, known))

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def checked(*values: Any, **options: Any) -> Any:
            check(options)
            return await method(*values, **options)

    else:

        @functools.wraps(method)
        def checked(*values: Any, **options: Any) -> Any:
            check(options)
            return method(*values, **options)

    return checked


def _unknown_option(method: str, option: str, known: set[str]) -> str:
    meant = _OTHER_NAMES.get(option)
    nearest = [meant] if meant in known else get_close_matches(option, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(sorted(known)) or 'none'}"
    return f"{method}() has no option {option!r}; {hint}"


def to_seconds(value: float | None, default: float, name: str = "timeout_seconds") -> float:
    """A time limit; the default if it is None."""
    if value is None:
        return default
    seconds = to_number(name, value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidInput.of_field(name, f"is {value}; it must be a number of seconds above 0")
    return seconds


def to_number(name: str, value: Any) -> float:
    """A number, which may be one of numpy."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise _wrong_type(name, value, "a number")


def to_whole_number(name: str, value: Any) -> int:
    """A whole number, which may be one of numpy."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise _wrong_type(name, value, "a whole number")


def to_flag(name: str, value: Any) -> bool:
    """True or False."""
    if isinstance(value, bool):
        return value
    raise _wrong_type(name, value, "True or False")


def to_choice(name: str, value: Any, choices: type[Choice]) -> Choice:
    """A member of an enum, which may be given as its string."""
    try:
        return choices(value)
    except ValueError:
        raise InvalidInput.of_field(name, f"is {value!r}; it must be one of {', '.join(choices)}") from None


def to_truncation(name: str, value: Any) -> encoder_pb.Truncation.ValueType:
    """What is done with long texts; None leaves it to the model."""
    if value is None:
        return encoder_pb.TRUNCATION_UNSPECIFIED
    return TRUNCATIONS[to_choice(name, value, Truncation)]


def to_name(name: str, value: Any) -> str:
    """A string; empty if there is none."""
    if isinstance(value, str):
        return value
    raise _wrong_type(name, value, "a string")


def to_text(name: str, value: Any) -> str:
    """A text that can be sent."""
    text = to_name(name, value)
    raise_violations([text_violation(name, text)])
    return text


def to_id(name: str, value: Any) -> str:
    """The id of a document."""
    document_id = to_name(name, value)
    raise_violations([id_violation(name, document_id)])
    return document_id


def to_query(query: Any, document_id: Any) -> tuple[str, str]:
    """A text or the id of a document; the other one is empty."""
    stored_id = to_name("document_id", document_id)
    if not stored_id:
        return to_text("query", query), ""
    if to_name("query", query):
        raise InvalidInput.of_field("document_id", "give either a query or a document_id")
    return "", to_id("document_id", stored_id)


def to_ids(name: str, value: Any) -> list[str]:
    """Ids of documents: a list, or a single one."""
    ids = _to_strings(name, value)
    raise_violations(id_violation(f"{name}[{position}]", one) for position, one in enumerate(ids))
    return ids


def to_version(value: Any) -> int | None:
    """The version of a delete; None means now."""
    if value is None:
        return None
    version = to_whole_number("version", value)
    raise_violations([version_violation("version", version)])
    return version


def to_texts(name: str, value: Any) -> list[str]:
    """Texts: at least one of a list, or a single one. `check_texts` checks their content."""
    texts = _to_strings(name, value)
    _check_not_empty(name, texts)
    return texts


def to_pairs(name: str, value: Any) -> list[TextPair]:
    """At least one pair of texts. `check_texts` checks their content."""
    pairs = list[TextPair]()
    for position, pair in enumerate(_to_list(name, value)):
        place = f"{name}[{position}]"
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidInput.of_field(place, f"is {_shown(pair)}; it must be a pair of two texts")
        pairs.append((to_name(place, pair[0]), to_name(place, pair[1])))
    _check_not_empty(name, pairs)
    return pairs


def check_texts(name: str, items: Sequence[str | TextPair], max_bytes: int) -> None:
    """Refuse texts or pairs that cannot be sent, naming all of them."""
    raise_violations(
        text_violation(f"{name}[{position}]", text, max_bytes)
        for position, item in enumerate(items)
        for text in ((item,) if isinstance(item, str) else item)
    )


def to_iterable(name: str, value: Any) -> Any:
    """What can be iterated over once, later. A single text or document is none."""
    if isinstance(value, AsyncIterable):
        return value
    _check_is_list(name, value)
    return iter(value)


def to_condition(name: str, value: Any) -> Filter:
    """A filter: a `Filter`, a single condition, or a string in the syntax of `--where`."""
    if isinstance(value, str):
        return parse(value)
    if not isinstance(value, _CONDITIONS):
        raise _wrong_type(name, value, "a Filter, a condition or a string")
    _check_condition(name, value)
    return value if isinstance(value, Filter) else Filter(must=(value,))


def to_filter(value: Any) -> pb.Filter | None:
    """A filter of stored documents; None means all."""
    return None if value is None else filter_to_proto(to_condition("where", value), "where")


def to_limit(value: Any) -> int | None:
    """The most items of a list; None means all."""
    if value is None:
        return None
    limit = to_whole_number("limit", value)
    if limit < 1:
        raise InvalidInput.of_field("limit", f"is {limit}; it must be at least 1")
    return limit


def to_delete_filter(value: Any) -> pb.Filter:
    """A filter that does not select everything."""
    condition = to_condition("where", value)
    if condition.is_empty:
        raise InvalidInput.of_field("where", "is empty; it would delete every document")
    return filter_to_proto(condition, "where")


def to_match_options(keywords: MatchKeywords) -> pb.MatchOptions:
    """The options of a match as a message."""
    given: dict[str, Any] = dict(keywords)
    for name in _WHOLE_NUMBERS:
        if name in given:
            given[name] = to_whole_number(name, given[name])
    for name in _FLAGS:
        if name in given:
            given[name] = to_flag(name, given[name])
    given["min_score"] = to_number("min_score", given.get("min_score", MatchOptions.min_score))
    if given.get("where") is not None:
        given["where"] = to_condition("where", given["where"])
    given["exclude_ids"] = tuple(to_ids("exclude_ids", given.get("exclude_ids", ())))
    given["group_by"] = to_name("group_by", given.get("group_by", ""))
    if given.get("recall") is not None:
        given["recall"] = to_choice("recall", given["recall"], Recall)
    rerank = given.get("rerank")
    if rerank is None or isinstance(rerank, bool):
        given["rerank"] = _RERANK_OF_KEYWORD[rerank]
    else:
        given["rerank"] = to_choice("rerank", rerank, Rerank)
    given.setdefault("candidate_count", default_candidate_count(given.get("top_k", MatchOptions.top_k)))
    return options_to_proto(MatchOptions(**given))


def _check_condition(name: str, condition: Condition) -> None:
    """Refuse a list that is not one: a string has characters, and a generator is empty the second time."""
    if isinstance(condition, Filter):
        for clause in _CLAUSES:
            children = getattr(condition, clause)
            _check_is_tuple(f"{name}.{clause}", children, "conditions")
            for position, child in enumerate(children):
                place = f"{name}.{clause}[{position}]"
                if not isinstance(child, _CONDITIONS):
                    raise _wrong_type(place, child, "a condition")
                _check_condition(place, child)
        to_whole_number(f"{name}.min_should", condition.min_should)
        return
    match condition:
        case FieldMatch(_, values):
            _check_is_tuple(f"{name}.values", values, "values")
        case HasId(ids):
            _check_is_tuple(f"{name}.ids", ids, "ids")
            _to_strings(f"{name}.ids", ids)
        case FieldTimeRange():
            for bound in ("gt", "gte", "lt", "lte"):
                value = getattr(condition, bound)
                if not isinstance(value, (datetime, NoneType)):
                    raise _wrong_type(f"{name}.{bound}", value, "a datetime; parse_time makes one")


def _check_is_tuple(name: str, value: Any, content: str) -> None:
    if not isinstance(value, (tuple, list)):
        raise _wrong_type(name, value, f"a tuple of {content}")


def _to_strings(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [to_name(f"{name}[{position}]", one) for position, one in enumerate(_to_list(name, value))]


def _to_list(name: str, value: Any) -> list[Any]:
    _check_is_list(name, value)
    return list(value)


def _check_is_list(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes, Mapping, Document)) or not isinstance(value, Iterable):
        raise _wrong_type(name, value, "a list")


def _check_not_empty(name: str, items: list[Any]) -> None:
    if not items:
        raise InvalidInput.of_field(name, "is empty; at least one item is needed")


def _wrong_type(name: str, value: Any, wanted: str) -> InvalidInput:
    return InvalidInput.of_field(name, f"is {_shown(value)}; it must be {wanted}")


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"

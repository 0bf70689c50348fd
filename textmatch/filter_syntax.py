"""The text syntax of filters: `module = "os" and kind in ("function", "class") and not deprecated = true`.

    expression  = all {"or" all}
    all         = one {"and" one}
    one         = "not" one | "(" expression ")" | condition
                | "at" "least" whole number "of" "(" expression {"," expression} ")"
    condition   = field "=" value | field "!=" value
                | field ["not"] "in" "(" value {"," value} ")"
                | field ("<" | "<=" | ">" | ">=") (number | time)
                | field "starts" "with" text
                | field "exists"
                | field "is" "null"
                | "id" ("=" | "!=") text | "id" ["not"] "in" "(" text {"," text} ")"
    field       = ["attributes."] name | anything in backquotes
    name        = letters, digits and any of _ - . [ ], not a keyword
    value       = text | number | true | false
    text        = "text" | 'text'
    time        = "2024-01-31" | "2024-01-31T12:00:00+08:00"

`id` is the document's id; attributes named `id` or `text` are `attributes.id` and `attributes.text`, or
`` `id` `` and `` `text` ``. A backslash escapes a quote, a backquote or a backslash; \\n in a text is a line
break. Keywords are not case sensitive. docs/matching.md has examples.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime

from textmatch.documents import MAX_EXACT_WHOLE_NUMBER
from textmatch.errors import InvalidInput
from textmatch.filters import (
    Condition,
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    Value,
    have_one_type,
    parse_time,
)

_MAX_DEPTH = 8
_KEYWORDS = frozenset({"and", "or", "not", "in", "exists", "true", "false"})
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<quoted>`(?:[^`\\]|\\.)+`)
    | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<symbol><=|>=|!=|[=<>(),])
    | (?P<word>[^\W\d][\w.\-\[\]]*)
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_ATTRIBUTES_PREFIX = "attributes."
_OPERATORS = '= != < <= > >= "in" "not in" "starts with" "exists" "is null"'
_VALUE = "a text in quotes, a number, true or false"
_ATTRIBUTE_HINT = '; an attribute that is named {0} is written "attributes.{0}"'
_TIME_OR_NUMBER = 'a number, or a time in quotes such as "2024-01-31" or "2024-01-31T12:00:00Z"'


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int

    @property
    def keyword(self) -> str:
        """The keyword or symbol, in lower case; "" for any other token."""
        if self.kind == "symbol":
            return self.text
        return self.word if self.word in _KEYWORDS else ""

    @property
    def word(self) -> str:
        """The word in lower case; "" for any other token."""
        return self.text.lower() if self.kind == "word" else ""


def parse(text: str) -> Filter:
    """Parse a filter.

    Raises:
        InvalidInput: it cannot be parsed; the message names the character and what was expected there.
    """
    condition = _Parser(_tokens(text)).expression_until_end()
    return condition if isinstance(condition, Filter) else Filter(must=(condition,))


class _Parser:
    """Recursive descent with one token of lookahead."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._depth = 0

    def expression_until_end(self) -> Condition:
        """The whole text."""
        condition = self._expression()
        if self._next.kind != "end":
            raise self._expected('"and", "or" or the end')
        return condition

    def _expression(self) -> Condition:
        alternatives = [self._all()]
        while self._take("or"):
            alternatives.append(self._all())
        return alternatives[0] if len(alternatives) == 1 else Filter(should=tuple(alternatives))

    def _all(self) -> Condition:
        conditions = [self._one()]
        while self._take("and"):
            conditions.append(self._one())
        return conditions[0] if len(conditions) == 1 else _merged(conditions)

    def _one(self) -> Condition:
        if self._depth > _MAX_DEPTH:
            raise self._expected(f"at most {_MAX_DEPTH} levels")
        self._depth += 1
        try:
            if self._take("not"):
                return Filter(must_not=(self._one(),))
            if self._take("("):
                condition = self._expression()
                self._expect(")")
                return condition
            if self._take_words("at", "least"):
                return self._at_least()
            return self._condition()
        finally:
            self._depth -= 1

    def _at_least(self) -> Condition:
        start = self._next
        if start.kind != "number":
            raise self._expected("a whole number")
        count = self._number()
        if not self._take_words("of"):
            raise self._expected('"of"')
        self._expect("(")
        alternatives = [self._expression()]
        while self._take(","):
            alternatives.append(self._expression())
        self._expect(")")
        if not 1 <= count <= len(alternatives) or not count.is_integer():
            raise _error(start.position, f"a whole number from 1 to {len(alternatives)}")
        return Filter(should=tuple(alternatives), min_should=int(count))

    def _condition(self) -> Condition:
        token = self._next
        field = self._field()
        if token.kind == "word":
            if field == "id":
                return self._id_condition()
            if field == "text":
                raise _error(token.position, "an attribute" + _ATTRIBUTE_HINT.format("text"))
            field = field.removeprefix(_ATTRIBUTES_PREFIX)
        return self._attribute_condition(field)

    def _attribute_condition(self, field: str) -> Condition:
        if self._take("exists"):
            return FieldExists(field)
        if self._take_words("is"):
            if not self._take_words("null"):
                raise self._expected('"null"; the opposite is "exists"')
            return FieldIsNull(field)
        if self._take_words("starts"):
            if not self._take_words("with"):
                raise self._expected('"with"')
            return FieldPrefix(field, self._text())
        for symbol, bound in _BOUNDS.items():
            if self._take(symbol):
                return self._range(field, bound)
        values, is_negated = self._equality(_OPERATORS)
        condition = FieldMatch(field, values)
        return Filter(must_not=(condition,)) if is_negated else condition

    def _id_condition(self) -> Condition:
        start = self._next
        values, is_negated = self._equality('= != "in" "not in"' + _ATTRIBUTE_HINT.format("id"))
        ids = tuple(value for value in values if isinstance(value, str))
        if len(ids) < len(values):
            raise _error(start.position, "ids in quotes" + _ATTRIBUTE_HINT.format("id"))
        return Filter(must_not=(HasId(ids),)) if is_negated else HasId(ids)

    def _equality(self, operators: str) -> tuple[tuple[Value, ...], bool]:
        """The values after `=`, `!=`, `in` or `not in`, and whether they are excluded."""
        if self._take("="):
            return (self._value(),), False
        if self._take("!="):
            return (self._value(),), True
        if self._take("not"):
            self._expect("in")
            return self._values(), True
        if self._take("in"):
            return self._values(), False
        raise self._expected(f"one of {operators}")

    def _range(self, field: str, bound: str) -> Condition:
        token = self._next
        if token.kind == "number":
            return FieldRange(field, **{bound: self._number()})
        if token.kind != "text":
            raise self._expected(_TIME_OR_NUMBER)
        try:
            moment: datetime = parse_time(self._text())
        except ValueError:
            raise _error(token.position, _TIME_OR_NUMBER) from None
        return FieldTimeRange(field, **{bound: moment})

    def _field(self) -> str:
        token = self._next
        if token.kind == "quoted":
            self._tokens.pop(0)
            return _unescaped(token.text)
        if token.kind == "word" and not token.keyword:
            self._tokens.pop(0)
            return token.text
        raise self._expected("the name of an attribute")

    def _values(self) -> tuple[Value, ...]:
        start = self._next
        self._expect("(")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._expect(")")
        if not have_one_type(tuple(values)):
            raise _error(start.position, "values of one type: texts, numbers, or true and false")
        return tuple(values)

    def _value(self) -> Value:
        token = self._next
        if token.kind == "text":
            return self._text()
        if token.kind == "number":
            number = self._number()
            return int(number) if number.is_integer() else number
        if token.keyword in {"true", "false"}:
            self._tokens.pop(0)
            return token.keyword == "true"
        hint = '; for null, write "is null"' if token.word == "null" else ""
        raise self._expected(_VALUE + hint)

    def _text(self) -> str:
        if self._next.kind != "text":
            raise self._expected("a text in quotes")
        return _unescaped(self._tokens.pop(0).text)

    def _number(self) -> float:
        token = self._tokens.pop(0)
        number = float(token.text)
        if not math.isfinite(number):
            raise _error(token.position, "a finite number")
        if token.text.lstrip("+-").isdigit() and abs(number) > MAX_EXACT_WHOLE_NUMBER:
            raise _error(token.position, "a whole number up to 2^53-1, because larger ones are not exact")
        return number

    @property
    def _next(self) -> _Token:
        return self._tokens[0]

    def _take(self, keyword: str) -> bool:
        if self._next.keyword != keyword:
            return False
        self._tokens.pop(0)
        return True

    def _take_words(self, *words: str) -> bool:
        """Take words that are no keywords and may name attributes elsewhere."""
        if tuple(token.word for token in self._tokens[: len(words)]) != words:
            return False
        del self._tokens[: len(words)]
        return True

    def _expect(self, keyword: str) -> None:
        if not self._take(keyword):
            raise self._expected(f'"{keyword}"')

    def _expected(self, what: str) -> InvalidInput:
        return _error(self._next.position, what)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            if text[start] in "\"'`":
                raise _error(start, f"a text that ends with {text[start]}")
            raise _error(start, "an attribute, a value, a comparison or a round bracket")
        tokens.append(_Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
        position = found.end()
    return tokens


def _error(position: int, expected: str) -> InvalidInput:
    return InvalidInput.of_field("where", f"is invalid at character {position + 1}: expected {expected}")


def _merged(conditions: list[Condition]) -> Filter:
    """One flat filter for conditions joined by "and"; negated ones go to `must_not`."""
    must: list[Condition] = []
    must_not: list[Condition] = []
    for condition in conditions:
        if isinstance(condition, Filter) and not condition.should:
            must += condition.must
            must_not += condition.must_not
        else:
            must.append(condition)
    return Filter(must=tuple(must), must_not=tuple(must_not))


def _unescaped(quoted: str) -> str:
    return re.sub(
        r"\\(.)", lambda found: "\n" if found[1] == "n" else str(found[1]), quoted[1:-1], flags=re.DOTALL
    )

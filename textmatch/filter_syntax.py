"""The text syntax of filters: `module = "os" and kind in ("function", "class") and not deprecated = true`.

    expression  = all {"or" all}
    all         = one {"and" one}
    one         = "not" one | "(" expression ")" | condition
    condition   = field "=" value | field "!=" value
                | field ["not"] "in" "(" value {"," value} ")"
                | field ("<" | "<=" | ">" | ">=") number
                | field "exists"
    field       = letters, digits and any of _ - . [ ], not a keyword; or anything in backquotes
    value       = "text" | 'text' | whole number | true | false

A backslash escapes a quote, a backquote or a backslash; \\n in a text is a line break. Keywords are not case
sensitive. docs/matching.md has examples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from textmatch.errors import InvalidInput
from textmatch.filters import Condition, FieldExists, FieldMatch, FieldRange, Filter

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
        lower = self.text.lower()
        return lower if self.kind == "word" and lower in _KEYWORDS else ""


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
            return self._condition()
        finally:
            self._depth -= 1

    def _condition(self) -> Condition:
        field = self._field()
        if self._take("exists"):
            return FieldExists(field)
        if self._take("="):
            return FieldMatch(field, (self._value(),))
        if self._take("!="):
            return Filter(must_not=(FieldMatch(field, (self._value(),)),))
        if self._take("not"):
            self._expect("in")
            return Filter(must_not=(FieldMatch(field, self._values()),))
        if self._take("in"):
            return FieldMatch(field, self._values())
        for symbol, bound in _BOUNDS.items():
            if self._take(symbol):
                return FieldRange(field, **{bound: self._number()})
        raise self._expected('one of = != < <= > >= "in" "not in" "exists"')

    def _field(self) -> str:
        token = self._next
        if token.kind == "quoted":
            self._tokens.pop(0)
            return _unescaped(token.text)
        if token.kind == "word" and not token.keyword:
            self._tokens.pop(0)
            return token.text
        raise self._expected("the name of an attribute")

    def _values(self) -> tuple[str | int | bool, ...]:
        start = self._next
        self._expect("(")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._expect(")")
        if len({type(value) for value in values}) > 1:
            raise _error(start.position, "values of one type: texts, whole numbers, or true and false")
        return tuple(values)

    def _value(self) -> str | int | bool:
        token = self._next
        if token.kind == "text":
            self._tokens.pop(0)
            return _unescaped(token.text)
        if token.keyword in {"true", "false"}:
            self._tokens.pop(0)
            return token.keyword == "true"
        if token.kind == "number" and float(token.text).is_integer():
            self._tokens.pop(0)
            return int(token.text) if token.text.lstrip("+-").isdigit() else int(float(token.text))
        raise self._expected("a text in quotes, a whole number, true or false")

    def _number(self) -> float:
        if self._next.kind != "number":
            raise self._expected("a number")
        return float(self._tokens.pop(0).text)

    @property
    def _next(self) -> _Token:
        return self._tokens[0]

    def _take(self, keyword: str) -> bool:
        if self._next.keyword != keyword:
            return False
        self._tokens.pop(0)
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
            raise _error(start, "an attribute, a value, a comparison or a bracket")
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

"""Whose text is next, so that nobody waits for all that another caller has queued.

Deficit round robin: the callers that have texts waiting stand in a line, and the first may send so many
tokens to the engine before it goes to the end. What a turn takes too much, the caller's next turns lack. A
caller with few texts is through with its first turn; the texts of one caller stay in the order they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class QueuedItem(Protocol):
    """A text that waits."""

    @property
    def caller(self) -> str: ...
    @property
    def tokens(self) -> int: ...


Text = TypeVar("Text", bound=QueuedItem)


class _Turn(Generic[Text]):
    """The texts of one caller, the oldest first, and how many tokens of them it may still send."""

    __slots__ = ("caller", "credit_tokens", "texts")

    def __init__(self, caller: str, credit_tokens: int) -> None:
        self.caller = caller
        self.credit_tokens = credit_tokens
        self.texts: deque[Text] = deque()


class DeficitRoundRobinQueue(Generic[Text]):
    """Texts of many callers. It knows of nobody who has no text in it.

    Args:
        turn_tokens: how many tokens a caller may send in its turn; the last text may be more.
        is_over: texts that nobody waits for any more; they are thrown away when they come up.
    """

    def __init__(self, turn_tokens: int, is_over: Callable[[Text], bool]) -> None:
        self._turn_tokens = turn_tokens
        self._is_over = is_over
        self._line: deque[_Turn[Text]] = deque()
        self._turns: dict[str, _Turn[Text]] = {}

    def __iter__(self) -> Iterator[Text]:
        """All texts, in no order that means anything."""
        return (text for turn in self._line for text in turn.texts)

    def add(self, caller: str, texts: Iterable[Text]) -> None:
        """Let the texts of one caller wait behind those it has waiting already."""
        turn = self._turns.get(caller)
        if turn is None:
            turn = self._turns[caller] = _Turn(caller, self._turn_tokens)
            self._line.append(turn)
        turn.texts.extend(texts)

    def peek(self) -> Text | None:
        """The text that is next; None if none waits."""
        while self._line:
            turn = self._line[0]
            while turn.texts and self._is_over(turn.texts[0]):
                turn.texts.popleft()
            if not turn.texts:
                del self._turns[self._line.popleft().caller]
            elif turn.credit_tokens <= 0:
                turn.credit_tokens += self._turn_tokens
                self._line.rotate(-1)
            else:
                return turn.texts[0]
        return None

    def take(self) -> Text:
        """Take the text that `peek` has just returned."""
        turn = self._line[0]
        text = turn.texts.popleft()
        turn.credit_tokens -= text.tokens
        return text

    def put_back(self, texts: Sequence[Text]) -> None:
        """Undo that these were taken: the texts not used of the last ones taken, in the order of taking."""
        for text in reversed(texts):
            turn = self._turns.get(text.caller)
            if turn is None:
                turn = self._turns[text.caller] = _Turn(text.caller, 0)
                self._line.appendleft(turn)
            turn.texts.appendleft(text)
            turn.credit_tokens += text.tokens

"""A queue that is fair between callers: deficit round robin.

Callers with queued items form a ring. The first caller may take items of up to one quantum of tokens, then it
goes to the end of the ring. Overdraft is deducted from the caller's next quantum. A caller with few items is
served within one quantum of each other caller. The items of one caller keep their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class QueuedItem(Protocol):
    """An item in the queue: its caller, and its cost in tokens."""

    @property
    def caller(self) -> str: ...
    @property
    def tokens(self) -> int: ...


AnyItem = TypeVar("AnyItem", bound=QueuedItem)


class CallerTotals:
    """Tokens by caller. A caller without tokens is forgotten."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def __len__(self) -> int:
        """Callers with tokens."""
        return len(self._tokens)

    def __contains__(self, caller: str) -> bool:
        return caller in self._tokens

    @property
    def tokens(self) -> int:
        """Of all callers."""
        return sum(self._tokens.values())

    def of(self, caller: str) -> int:
        """Tokens of one caller."""
        return self._tokens.get(caller, 0)

    def add(self, caller: str, tokens: int) -> None:
        """Add tokens to those of the caller; negative tokens remove them."""
        if total := self.of(caller) + tokens:
            self._tokens[caller] = total
        else:
            self._tokens.pop(caller, None)

    def ahead_of(self, caller: str, tokens: int, quantum_tokens: int) -> int:
        """Tokens that are served before the last of a new call of `tokens`.

        Until then every other caller gets at most as many quanta as this one.
        """
        share = max(self.of(caller) + tokens, quantum_tokens)
        return sum(min(queued, share) for queued in self._tokens.values())


class _CallerQueue(Generic[AnyItem]):
    """The items of one caller, oldest first, and how many tokens it may still take."""

    __slots__ = ("caller", "credit_tokens", "items")

    def __init__(self, caller: str, credit_tokens: int) -> None:
        self.caller = caller
        self.credit_tokens = credit_tokens
        self.items: deque[AnyItem] = deque()


class DeficitRoundRobinQueue(Generic[AnyItem]):
    """Items of many callers. A caller without items leaves no state behind.

    Args:
        quantum_tokens: how many tokens a caller may take before the next caller. The last item may exceed it.
            It may be changed at any time.
        is_over: whether an item is no longer needed; it is dropped when it reaches the front.
    """

    def __init__(self, quantum_tokens: int, is_over: Callable[[AnyItem], bool]) -> None:
        self.quantum_tokens = quantum_tokens
        self._is_over = is_over
        self._ring: deque[_CallerQueue[AnyItem]] = deque()
        self._by_caller: dict[str, _CallerQueue[AnyItem]] = {}

    def __iter__(self) -> Iterator[AnyItem]:
        """All items, in no particular order."""
        return (item for queue in self._ring for item in queue.items)

    def add(self, caller: str, items: Iterable[AnyItem]) -> None:
        """Append items to those of the caller."""
        queue = self._by_caller.get(caller)
        if queue is None:
            queue = self._by_caller[caller] = _CallerQueue(caller, self.quantum_tokens)
            self._ring.append(queue)
        queue.items.extend(items)

    def peek(self) -> AnyItem | None:
        """The next item; None if the queue is empty."""
        while self._ring:
            queue = self._ring[0]
            while queue.items and self._is_over(queue.items[0]):
                queue.items.popleft()
            if not queue.items:
                del self._by_caller[self._ring.popleft().caller]
            elif queue.credit_tokens <= 0:
                queue.credit_tokens += self.quantum_tokens
                self._ring.rotate(-1)
            else:
                return queue.items[0]
        return None

    def take(self) -> AnyItem:
        """Remove and return the item that `peek` has just returned."""
        queue = self._ring[0]
        item = queue.items.popleft()
        queue.credit_tokens -= item.tokens
        return item

    def put_back(self, items: Sequence[AnyItem]) -> None:
        """Undo `take` for items that were not used, given in the order in which they were taken."""
        for item in reversed(items):
            queue = self._by_caller.get(item.caller)
            if queue is None:
                queue = self._by_caller[item.caller] = _CallerQueue(item.caller, 0)
                self._ring.appendleft(queue)
            queue.items.appendleft(item)
            queue.credit_tokens += item.tokens

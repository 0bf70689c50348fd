"""Clusters of what pairs connect, by union-find.

clusters = UnionFind()
clusters.join("a", "b")
clusters.join("b", "c")
clusters.groups()    # [["a", "b", "c"]]
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class UnionFind(Generic[Item]):
    """Disjoint sets of items. A join takes nearly constant time."""

    def __init__(self) -> None:
        # Each item with another one of its set; a root with itself.
        self._parents: dict[Item, Item] = {}
        self._sizes: dict[Item, int] = {}

    def join(self, first: Item, second: Item) -> None:
        """Put two items and all that are joined with them into one set."""
        one, other = self._root(first), self._root(second)
        if one == other:
            return
        if self._sizes[one] < self._sizes[other]:
            one, other = other, one
        self._parents[other] = one
        self._sizes[one] += self._sizes.pop(other)

    def groups(self) -> list[list[Item]]:
        """The sets, the largest first. Otherwise items and sets are in the order of their first join."""
        found: dict[Item, list[Item]] = {}
        for item in self._parents:
            found.setdefault(self._root(item), []).append(item)
        return sorted(found.values(), key=lambda group: -len(group))

    def _root(self, item: Item) -> Item:
        if item not in self._parents:
            self._parents[item], self._sizes[item] = item, 1
        parent = self._parents[item]
        while parent != item:
            # Halves the path for the next time.
            self._parents[item] = self._parents[parent]
            item, parent = parent, self._parents[parent]
        return item

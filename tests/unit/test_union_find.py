from __future__ import annotations

import random

from textmatch.union_find import UnionFind


def test_pairs_connect_what_they_share():
    clusters = UnionFind[str]()
    for pair in (("a", "b"), ("c", "d"), ("e", "f"), ("b", "c")):
        clusters.join(*pair)
    assert clusters.groups() == [["a", "b", "c", "d"], ["e", "f"]]


def test_without_pairs_there_are_no_groups():
    assert UnionFind[str]().groups() == []


def test_a_pair_may_come_twice_and_with_itself():
    clusters = UnionFind[int]()
    clusters.join(1, 2)
    clusters.join(2, 1)
    clusters.join(3, 3)
    assert clusters.groups() == [[1, 2], [3]]


def test_groups_of_the_same_size_are_in_the_order_of_their_first_join():
    clusters = UnionFind[str]()
    for pair in (("z", "y"), ("b", "a"), ("m", "n")):
        clusters.join(*pair)
    assert clusters.groups() == [["z", "y"], ["b", "a"], ["m", "n"]]


def test_the_order_of_joins_does_not_change_the_groups():
    generator = random.Random(7)
    pairs = [(group * 1_000 + one, group * 1_000 + one + 1) for group in range(5) for one in range(200)]
    wanted = [set(range(group * 1_000, group * 1_000 + 201)) for group in range(5)]
    for _ in range(5):
        generator.shuffle(pairs)
        clusters = UnionFind[int]()
        for one, other in pairs:
            clusters.join(other, one)
        assert sorted(map(set, clusters.groups()), key=min) == wanted


def test_a_long_chain_is_no_problem():
    clusters = UnionFind[int]()
    for number in range(100_000):
        clusters.join(number + 1, number)
    [group] = clusters.groups()
    assert len(group) == 100_001

from __future__ import annotations

from bench.fusion import _with_copies
from bench.quality import QualitySet
from training.evaluation.retrieval import RetrievalSet


def test_every_tenth_query_of_each_set_stands_among_the_shared_documents() -> None:
    documents = ["one", "two"]
    group = {
        name: QualitySet(
            RetrievalSet(documents, [f"{name} {at}" for at in range(11)], [{at % 2: 1.0} for at in range(11)])
        )
        for name in ("first", "second")
    }
    prepared = _with_copies(group)
    for name, one in prepared.items():
        shown = one.collection.documents
        assert shown == ["one", "two", "first 0", "first 10", "second 0", "second 10"]
        for at, grades in enumerate(one.collection.grades):
            copies = {shown[position] for position in grades if position >= len(documents)}
            assert copies == ({f"{name} {at}"} if at in (0, 10) else set())
            assert at % 2 in grades
    assert documents == ["one", "two"]
    assert group["first"].collection.grades[0] == {0: 1.0}

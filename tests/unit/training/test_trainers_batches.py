from __future__ import annotations

from itertools import chain

from datasets import Dataset

from training.trainers import LengthSortedBatchSampler


def _sampler(lengths: list[int], batch_size: int, seed: int = 0) -> LengthSortedBatchSampler:
    dataset = Dataset.from_dict(
        {"sentence1": ["x" * length for length in lengths], "sentence2": ["y"] * len(lengths)}
    )
    return LengthSortedBatchSampler(dataset, batch_size=batch_size, drop_last=False, seed=seed)


def test_every_pair_comes_once_an_epoch_and_each_epoch_differs() -> None:
    sampler = _sampler([number % 17 for number in range(103)], batch_size=8)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(103))
    assert len(first) == len(sampler) == 13
    assert first != second


def test_a_batch_holds_similar_lengths_and_batches_are_not_in_order_of_length() -> None:
    lengths = list(range(1, 65))
    batches = list(_sampler(lengths, batch_size=8))
    assert all(max(batch) - min(batch) == 7 for batch in batches)
    assert batches != sorted(batches)


def test_the_seed_decides() -> None:
    lengths = [number % 17 for number in range(100)]
    assert list(_sampler(lengths, 8, seed=3)) == list(_sampler(lengths, 8, seed=3))
    assert list(_sampler(lengths, 8, seed=3)) != list(_sampler(lengths, 8, seed=4))

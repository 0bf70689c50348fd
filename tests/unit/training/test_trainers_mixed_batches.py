"""Batches from several datasets in one run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from datasets import Dataset
from torch.utils.data import ConcatDataset

from training.trainers import LengthSortedBatchSampler, MixedBatchSampler

SIZES = (64, 16, 40)
BATCH_SIZE = 8


def _sampler(shares: tuple[float, ...]) -> MixedBatchSampler:
    datasets: list[Any] = [
        Dataset.from_dict({"text": [f"text {number}" for number in range(size)]}) for size in SIZES
    ]
    samplers = [
        LengthSortedBatchSampler(dataset, batch_size=BATCH_SIZE, drop_last=False) for dataset in datasets
    ]
    return MixedBatchSampler(ConcatDataset(datasets), shares, batch_samplers=samplers, seed=3)


def _parts(batches: list[list[int]]) -> list[int]:
    limits = (SIZES[0], SIZES[0] + SIZES[1], sum(SIZES))
    found = []
    for batch in batches:
        parts = {next(part for part, limit in enumerate(limits) if row < limit) for row in batch}
        assert len(parts) == 1, "a batch has rows of one dataset"
        found += parts
    return found


def test_the_shares_decide_how_often_each_dataset_is_drawn():
    sampler = _sampler((1.0, 6.0, 1.0))
    counts: Counter[int] = Counter()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 15
        counts.update(_parts(batches))
    assert 0.68 < counts[1] / counts.total() < 0.82
    assert 0.07 < counts[0] / counts.total() < 0.18


def test_a_small_dataset_starts_again_in_another_order():
    batches = [batch for batch in _sampler((0.01, 1.0, 0.01)) if SIZES[0] <= batch[0] < SIZES[0] + SIZES[1]]
    passes = [batches[start] + batches[start + 1] for start in range(0, len(batches) - 1, 2)]
    assert len(passes) > 3
    assert all(sorted(one) == list(range(SIZES[0], SIZES[0] + SIZES[1])) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_the_order_depends_on_seed_and_epoch_only():
    first, second = _sampler((1.0, 1.0, 1.0)), _sampler((1.0, 1.0, 1.0))
    orders = [list(first), list(second)]
    assert orders[0] == orders[1]
    second.set_epoch(1)
    assert list(second) != orders[0]

"""Batches of pairs of similar length: little padding, and still another order in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler

# So many batches are sorted by length among themselves; more means less padding and less chance.
BATCHES_PER_POOL = 32


class LengthSortedBatchSampler(DefaultBatchSampler):
    """Shuffles, sorts pools of pairs by their length in characters, and shuffles the batches."""

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, **options)
        first, second = dataset["sentence1"], dataset["sentence2"]
        self._lengths = [len(a) + len(b) for a, b in zip(first, second, strict=True)]

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self._lengths), generator=self.generator).tolist()
        pool_size = self.batch_size * BATCHES_PER_POOL
        batches: list[list[int]] = []
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=self._lengths.__getitem__)
            batches += [pool[at : at + self.batch_size] for at in range(0, len(pool), self.batch_size)]
        for position in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[position]

"""Batches of rows of similar length: little padding, and still another order in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler

# So many batches are sorted by length among themselves; more means less padding and less chance.
BATCHES_PER_POOL = 32


class LengthSortedBatchSampler(DefaultBatchSampler):
    """Shuffles, sorts pools of rows by their length in characters, and shuffles the batches.

    The order follows from the seed and the number of the epoch, so that a resumed run goes on in it.
    """

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, **options)
        texts = dataset.select_columns([name for name in dataset.column_names if name != "label"])
        self._lengths = [sum(map(len, row.values())) for row in texts]

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool_size = self.batch_size * BATCHES_PER_POOL
        batches: list[list[int]] = []
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=self._lengths.__getitem__)
            batches += [pool[at : at + self.batch_size] for at in range(0, len(pool), self.batch_size)]
        for position in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[position]

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from datasets import Dataset
from transformers import BertTokenizer

from training.trainers import LengthSortedBatchSampler, LengthSortedSampler, RepeatableMasking


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


def test_rows_one_by_one_are_those_of_the_batches() -> None:
    """For trainers that make the batches themselves, which a short batch in the middle would shift."""
    lengths = [number % 17 for number in range(103)]
    sampler = LengthSortedSampler(lengths, batch_size=8, seed=0)
    rows = list(sampler)
    assert sorted(rows) == list(range(len(sampler)))
    assert all(
        max(map(lengths.__getitem__, rows[at : at + 8])) - lengths[rows[at]] < 3 for at in range(0, 96, 8)
    )
    assert list(sampler) == rows
    sampler.set_epoch(1)
    assert list(sampler) != rows


def test_the_same_batch_is_masked_alike_whatever_was_drawn_before(tmp_path: Path) -> None:
    """A resumed run skips the batches that were done, and draws nothing for them."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "\n".join(map(chr, range(97, 123))) + "\n")
    tokenizer = BertTokenizer(vocab=str(vocabulary))
    batches = [tokenizer([text] * 4)["input_ids"] for text in ("a b c d e f g h", "h g f e d c b a")]
    examples = [[{"input_ids": ids} for ids in batch] for batch in batches]
    masking = RepeatableMasking(tokenizer, mlm_probability=0.5)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (masking(batch)["input_ids"] for batch in examples)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(masking(examples[1])["input_ids"], second)
    assert not torch.equal(first != torch.tensor(batches[0]), second != torch.tensor(batches[1]))

import random
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_convert

from stormproof import resumable
from stormproof.data import rng
from stormproof.data.sample_seeds import draws_random_numbers


class Draws(Dataset):
    def __init__(self, says: bool | None = None) -> None:
        if says is not None:
            self.draws_random_numbers = says

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> float:
        return random.random()


TENSORS = TensorDataset(torch.zeros(3))
KNOWN: dict[str, tuple[DataLoader, bool]] = {
    "tensors": (DataLoader(TENSORS), False),
    "a subset of a subset of tensors": (DataLoader(Subset(Subset(TENSORS, [0, 1]), [1])), False),
    "tensors without batches": (DataLoader(TENSORS, batch_size=None), False),
    "tensors, converted only": (DataLoader(TENSORS, collate_fn=default_convert), False),
    "tensors, collated in the user's way": (DataLoader(TENSORS, collate_fn=lambda batch: batch), True),
    "a subclass of torch's": (DataLoader(type("Mine", (TensorDataset,), {})(torch.zeros(3))), True),
    "tensors together": (DataLoader(ConcatDataset([TENSORS, Subset(TENSORS, [1])])), False),
    "others together": (DataLoader(ConcatDataset([TENSORS, Draws()])), True),
    "those together that say they draw none": (DataLoader(ConcatDataset([Draws(says=False)])), False),
    "those together, collated in the user's way": (
        DataLoader(ConcatDataset([Draws(says=False)]), collate_fn=lambda batch: batch),
        True,
    ),
    "the user's": (DataLoader(Draws()), True),
    "the user's, which says it draws none": (DataLoader(Draws(says=False)), False),
    "a subset of what says it draws none": (DataLoader(Subset(Draws(says=False), [0])), False),
    "tensors that are said to draw": (DataLoader(Draws(says=True)), True),
}


@pytest.mark.parametrize(("loader", "expected"), KNOWN.values(), ids=KNOWN.keys())
def test_whether_it_may_draw_is_known_or_assumed(loader: DataLoader, expected: bool):
    assert draws_random_numbers(loader) is expected


def test_what_draws_nothing_is_not_seeded_and_pays_nothing(monkeypatch: pytest.MonkeyPatch):
    seeded: list[Any] = []
    monkeypatch.setattr("stormproof.data.sample_seeds.seed_process", lambda *key: seeded.append(key))
    list(resumable(DataLoader(Draws(says=False)), seed=1))
    assert seeded == []
    list(resumable(DataLoader(Draws(), batch_size=2), seed=1))
    assert seeded == [(1, 0, index) for index in range(6)]


def test_a_sample_draws_the_same_wherever_it_stands_in_a_batch():
    before = repr(rng.capture())
    size_one, size_three = ([*resumable(DataLoader(Draws(), batch_size=size), seed=1)] for size in (1, 3))
    assert torch.cat(size_one).tolist() == torch.cat(size_three).tolist()
    assert len(set(torch.cat(size_one).tolist())) == 6
    assert repr(rng.capture()) == before

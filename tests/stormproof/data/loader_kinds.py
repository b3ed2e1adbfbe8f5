# ruff: noqa: NPY002 (NumPy's global generator is one of those that must resume)
"""Every kind of loader that must resume exactly: its samples draw from all three generators, each call a new loader."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

SAMPLES, BATCH = 11, 4
Make = Callable[..., Any]


def noise() -> list[float]:
    """An odd number of normals each: a generator that keeps the other half of a pair must keep it."""
    return [random.gauss(0, 1), np.random.randn(), torch.randn(()).item()]


class Noisy(Dataset):
    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index), *noise()], dtype=torch.float64)


class NoisyBatches(Noisy):
    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        shift = sum(noise())
        return [torch.tensor([float(index), shift], dtype=torch.float64) for index in indices]


class Drawing(Sampler):
    """Draws from a generator of its own."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        order = list(range(SAMPLES))
        self.rng.shuffle(order)
        return iter(order)


class Counting(Sampler):
    """Begins where a number among its attributes says, which is there from the first pass on only."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        self.passes = getattr(self, "passes", 0) + 1
        for index in range(SAMPLES):
            yield (index + 3 * self.passes) % SAMPLES
        self.finished = True


class Keeping:
    """Batches of a list, a tensor and a dictionary that each pass changes; it is no ``Sampler`` of torch."""

    def __init__(self) -> None:
        self.order = list(range(SAMPLES))
        self.shift = torch.zeros(2, dtype=torch.int64)
        self.seen: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return SAMPLES // 2

    def __iter__(self) -> Iterator[list[int]]:
        self.order = self.order[3:] + self.order[:3]
        self.shift += 1
        for first in range(0, len(self) * 2, 2):
            pair = [(index + int(self.shift[0])) % SAMPLES for index in self.order[first : first + 2]]
            if pair == self.seen.get("last"):
                pair.reverse()
            yield pair
        self.seen["last"] = pair


class Telling(Sampler):
    """Has a ``state_dict``, which is the very list that it goes on with."""

    def __init__(self) -> None:
        self.order = list(range(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        self.order.append(self.order.pop(0))
        yield from self.order
        self.order.reverse()

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = list(state["order"])


class Pairs(Sampler):
    """Batches of the user's own, of one and of three indices, in an order of their own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(10, generator=self.generator).tolist()
        for start, end in ((0, 1), (1, 4), (4, 5), (5, 8), (8, 10)):
            yield order[start:end]


def of(dataset: Any = None, **order: Any) -> Make:
    """A DataLoader over ``Noisy``; where an argument is a function, it is called for each loader."""

    def make(**options: Any) -> DataLoader:
        given = {name: value() if callable(value) else value for name, value in order.items()}
        batches = {} if "batch_sampler" in given else {"batch_size": BATCH}
        return DataLoader(dataset() if dataset else Noisy(), **{**batches, **given, **options})

    return make


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weighted(own: bool) -> Sampler:
    return WeightedRandomSampler([1.0, 2.0, 3.0] * 3, 9, generator=generator() if own else None)


def distributed() -> DistributedSampler:
    return DistributedSampler(Noisy(), num_replicas=2, rank=1, seed=4)


MAP_STYLE: dict[str, Make] = {
    "sequential": of(),
    "shuffle": of(shuffle=True),
    "shuffle, a generator of the loader's": of(shuffle=True, generator=generator),
    "shuffle, the last dropped": of(shuffle=True, drop_last=True),
    "with replacement": of(sampler=lambda: RandomSampler(Noisy(), replacement=True, generator=generator())),
    "weighted": of(sampler=lambda: weighted(own=True)),
    "weighted, global": of(sampler=lambda: weighted(own=False)),
    "Python's generator": of(sampler=lambda: Drawing(random.Random(2))),
    "NumPy's generator": of(sampler=lambda: Drawing(np.random.default_rng(2))),
    "NumPy's old generator": of(sampler=lambda: Drawing(np.random.RandomState(2))),
    "counts its passes": of(sampler=Counting),
    "a sampler with state_dict": of(sampler=Telling),
    "distributed": of(sampler=distributed),
    "batch sampler": of(batch_sampler=Pairs),
    "a batch sampler that keeps lists": of(batch_sampler=Keeping),
    "torch's batch sampler": of(batch_sampler=lambda: BatchSampler(Drawing(random.Random(3)), 3, drop_last=True)),
    "no batches": of(lambda: Noisy(5), shuffle=True, batch_size=None),
    "fetched in batches": of(NoisyBatches, shuffle=True),
    "a subset": of(lambda: Subset(Noisy(), [9, 7, 5, 3, 1]), shuffle=True, batch_size=2),
    "tensors": of(lambda: TensorDataset(torch.arange(float(SAMPLES))), shuffle=True, drop_last=True),
}


class Stream(IterableDataset):
    """Has no state but the random numbers."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(SAMPLES + random.randrange(3)):
            yield torch.tensor([float(index), *noise()], dtype=torch.float64)


class GoesOn(IterableDataset):
    """Says where it is, and begins there; an early end is carried into the next pass."""

    def __init__(self) -> None:
        self.at = self.total = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < SAMPLES:
            self.at += 1
            self.total += 1
            yield torch.tensor([float(self.at), float(self.total), *noise()], dtype=torch.float64)
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class BeginsAgain(IterableDataset):
    """Says where it is, and begins there once after it was told to; an early end is forgotten."""

    def __init__(self) -> None:
        self.at = self.begin = 0

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[torch.Tensor]:
        begin, self.begin = self.begin, 0
        for index in range(begin, SAMPLES):
            self.at = index + 1
            yield torch.tensor([float(index), *noise()], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin = state["at"]


class OwnWay(DataLoader):
    """Iterates in a way of its own."""

    def __iter__(self) -> Iterator[Any]:
        yield from ([batch, noise()] for batch in super().__iter__())


class Loader:
    """A stateful loader of another kind, whose passes end early for good: it begins again where ``iter`` is called."""

    def __init__(self) -> None:
        self.epoch = self.at = 0
        self.resumed = False

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        if not self.resumed:
            self.epoch, self.at = self.epoch + 1, 0
        self.resumed = False
        return self._rest()

    def _rest(self) -> Iterator[Any]:
        while self.at < 4:
            self.at += 1
            yield [self.epoch, self.at, noise()]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.at, self.resumed = state["epoch"], state["at"], True


OTHERS: dict[str, Make] = {
    "a stream": of(Stream),
    "a stream, no batches": of(Stream, batch_size=None),
    "a stream with state_dict, goes on": of(GoesOn, batch_size=3),
    "a stream with state_dict, no batches": of(GoesOn, batch_size=None),
    "a stream with state_dict, begins again": of(BeginsAgain, batch_size=3),
    "a loader with an iterator of its own": lambda **options: OwnWay(Noisy(), batch_size=BATCH, **options),
    "a stateful loader": lambda **options: Loader(),
}

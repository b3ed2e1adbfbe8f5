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

SAMPLES, BATCH_SIZE = 11, 4
LoaderFactory = Callable[..., Any]


def draw_noise() -> list[float]:
    """An odd number of normals each: a generator that keeps the other half of a pair must keep it."""
    return [random.gauss(0, 1), np.random.randn(), torch.randn(()).item()]


class NoisyDataset(Dataset):
    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index), *draw_noise()], dtype=torch.float64)


class NoisyBatches(NoisyDataset):
    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        shift = sum(draw_noise())
        return [torch.tensor([float(index), shift], dtype=torch.float64) for index in indices]


class ShufflingSampler(Sampler):
    """Draws from a generator of its own."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        order = list(range(SAMPLES))
        self.rng.shuffle(order)
        return iter(order)


class PassCountingSampler(Sampler):
    """Begins where a number among its attributes says, which is there from the first pass on only."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        self.passes = getattr(self, "passes", 0) + 1
        for index in range(SAMPLES):
            yield (index + 3 * self.passes) % SAMPLES
        self.finished = True


class MutableBatchSampler:
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


class StatefulSampler(Sampler):
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


class UnevenBatchSampler(Sampler):
    """Batches of the user's own, of one and of three indices, in an order of their own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(10, generator=self.generator).tolist()
        for start, end in ((0, 1), (1, 4), (4, 5), (5, 8), (8, 10)):
            yield order[start:end]


def loader_factory(dataset: Any = None, **order: Any) -> LoaderFactory:
    """A DataLoader over ``Noisy``; where an argument is a function, it is called for each loader."""

    def make(**options: Any) -> DataLoader:
        arguments = {name: value() if callable(value) else value for name, value in order.items()}
        batches = {} if "batch_sampler" in arguments else {"batch_size": BATCH_SIZE}
        return DataLoader(dataset() if dataset else NoisyDataset(), **{**batches, **arguments, **options})

    return make


def make_generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_weighted_sampler(has_own_generator: bool) -> Sampler:
    return WeightedRandomSampler([1.0, 2.0, 3.0] * 3, 9, generator=make_generator() if has_own_generator else None)


def make_distributed_sampler() -> DistributedSampler:
    return DistributedSampler(NoisyDataset(), num_replicas=2, rank=1, seed=4)


MAP_STYLE_LOADERS: dict[str, LoaderFactory] = {
    "sequential": loader_factory(),
    "shuffle": loader_factory(shuffle=True),
    "shuffle, a generator of the loader's": loader_factory(shuffle=True, generator=make_generator),
    "shuffle, the last dropped": loader_factory(shuffle=True, drop_last=True),
    "with replacement": loader_factory(
        sampler=lambda: RandomSampler(NoisyDataset(), replacement=True, generator=make_generator())
    ),
    "weighted": loader_factory(sampler=lambda: make_weighted_sampler(has_own_generator=True)),
    "weighted, global": loader_factory(sampler=lambda: make_weighted_sampler(has_own_generator=False)),
    "Python's generator": loader_factory(sampler=lambda: ShufflingSampler(random.Random(2))),
    "NumPy's generator": loader_factory(sampler=lambda: ShufflingSampler(np.random.default_rng(2))),
    "NumPy's old generator": loader_factory(sampler=lambda: ShufflingSampler(np.random.RandomState(2))),
    "counts its passes": loader_factory(sampler=PassCountingSampler),
    "a sampler with state_dict": loader_factory(sampler=StatefulSampler),
    "distributed": loader_factory(sampler=make_distributed_sampler),
    "batch sampler": loader_factory(batch_sampler=UnevenBatchSampler),
    "a batch sampler that keeps lists": loader_factory(batch_sampler=MutableBatchSampler),
    "torch's batch sampler": loader_factory(
        batch_sampler=lambda: BatchSampler(ShufflingSampler(random.Random(3)), 3, drop_last=True)
    ),
    "no batches": loader_factory(lambda: NoisyDataset(5), shuffle=True, batch_size=None),
    "fetched in batches": loader_factory(NoisyBatches, shuffle=True),
    "a subset": loader_factory(lambda: Subset(NoisyDataset(), [9, 7, 5, 3, 1]), shuffle=True, batch_size=2),
    "tensors": loader_factory(lambda: TensorDataset(torch.arange(float(SAMPLES))), shuffle=True, drop_last=True),
}


class Stream(IterableDataset):
    """Has no state but the random numbers."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(SAMPLES + random.randrange(3)):
            yield torch.tensor([float(index), *draw_noise()], dtype=torch.float64)


class ContinuingStream(IterableDataset):
    """Says where it is, and begins there; an early end is carried into the next pass."""

    def __init__(self) -> None:
        self.at = self.total = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < SAMPLES:
            self.at += 1
            self.total += 1
            yield torch.tensor([float(self.at), float(self.total), *draw_noise()], dtype=torch.float64)
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class RestartingStream(IterableDataset):
    """Says where it is, and begins there once after it was told to; an early end is forgotten."""

    def __init__(self) -> None:
        self.at = self.begin = 0

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[torch.Tensor]:
        begin, self.begin = self.begin, 0
        for index in range(begin, SAMPLES):
            self.at = index + 1
            yield torch.tensor([float(index), *draw_noise()], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin = state["at"]


class CustomIterLoader(DataLoader):
    """Iterates in a way of its own."""

    def __iter__(self) -> Iterator[Any]:
        yield from ([batch, draw_noise()] for batch in super().__iter__())


class StatefulLoader:
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
            yield [self.epoch, self.at, draw_noise()]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.at, self.resumed = state["epoch"], state["at"], True


OTHER_LOADERS: dict[str, LoaderFactory] = {
    "a stream": loader_factory(Stream),
    "a stream, no batches": loader_factory(Stream, batch_size=None),
    "a stream with state_dict, goes on": loader_factory(ContinuingStream, batch_size=3),
    "a stream with state_dict, no batches": loader_factory(ContinuingStream, batch_size=None),
    "a stream with state_dict, begins again": loader_factory(RestartingStream, batch_size=3),
    "a loader with an iterator of its own": lambda **options: CustomIterLoader(
        NoisyDataset(), batch_size=BATCH_SIZE, **options
    ),
    "a stateful loader": lambda **options: StatefulLoader(),
}

"""Generators that a data set keeps or creates itself resume exactly, in workers too."""

import random
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from stormproof import resumable
from stormproof.data.rng import seed_generator

GLOBAL_RNG: Any = np.random.default_rng(5)


class Noisy(Dataset[float]):
    """Draws a number for each index from the generator that ``rng`` returns."""

    def __init__(self) -> None:
        self.attribute = random.Random(3)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> float:
        return index + self.draw()

    def draw(self) -> float:
        return self.attribute.random()


def _seed() -> int:
    worker = get_worker_info()
    return 7 if worker is None else worker.seed


class CreatedAtFirstUse(Noisy):
    rng: Any = None

    def draw(self) -> float:
        if self.rng is None:
            self.rng = np.random.default_rng(_seed())
        return self.rng.random()


class CachedProperty(Noisy):
    @cached_property
    def rng(self) -> Any:
        return np.random.RandomState(_seed() % 2**32)

    def draw(self) -> float:
        return self.rng.rand()


class Jitter:
    rng: Any = None

    def __call__(self) -> float:
        self.rng = self.rng or torch.Generator().manual_seed(_seed())
        return torch.rand((), generator=self.rng).item()


class InATransform(Noisy):
    def __init__(self) -> None:
        self.transforms = [Jitter()]

    def draw(self) -> float:
        return self.transforms[0]()


class Global(Noisy):
    def draw(self) -> float:
        return GLOBAL_RNG.random()


class Whole(CreatedAtFirstUse):
    def __getitems__(self, indices: list[int]) -> list[float]:
        return [index + self.draw() for index in indices]


class CreatedByCollate:
    rng: Any = None

    def __call__(self, samples: list[float]) -> Any:
        self.rng = self.rng or np.random.default_rng(_seed())
        return default_collate(samples) + self.rng.random()


def create_in_worker(worker_id: int) -> None:
    get_worker_info().dataset.rng = np.random.default_rng(worker_id)


def create_global(worker_id: int) -> None:
    global GLOBAL_RNG  # noqa: PLW0603 (the case under test)
    GLOBAL_RNG = random.Random(worker_id)


LOADERS: dict[str, Any] = {
    "attribute": lambda **options: DataLoader(Noisy(), 2, **options),
    "first use": lambda **options: DataLoader(CreatedAtFirstUse(), 2, **options),
    "cached property": lambda **options: DataLoader(CachedProperty(), 2, **options),
    "transform": lambda **options: DataLoader(InATransform(), 2, **options),
    "global variable": lambda **options: DataLoader(Global(), 2, **options),
    "whole batches": lambda **options: DataLoader(Whole(), 2, **options),
    "without batches": lambda **options: DataLoader(CreatedAtFirstUse(), None, **options),
    "collate_fn": lambda **options: DataLoader(Noisy(), 2, collate_fn=CreatedByCollate(), **options),
}
IN_WORKERS: dict[str, Any] = {
    "first use": LOADERS["first use"],
    "collate_fn": LOADERS["collate_fn"],
    "worker_init_fn": lambda **options: DataLoader(CreatedAtFirstUse(), 2, worker_init_fn=create_in_worker, **options),
    "global of worker_init_fn": lambda **options: DataLoader(Global(), 2, worker_init_fn=create_global, **options),
}


def draw_epochs(loader: Any, count: int) -> list[Any]:
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch for _ in range(count) for batch in loader]


def check_resume(make: Any, **options: Any) -> None:
    whole = draw_epochs(resumable(make(**options), seed=1), 2)
    interrupted = resumable(make(**options), seed=1)
    batches = iter(interrupted)
    for _ in range(4):
        next(batches)
    resumed = resumable(make(**options))
    resumed.load_state_dict(interrupted.state_dict())
    del batches
    assert draw_epochs(resumed, 2) == whole[4:]
    assert len({str(batch) for batch in whole}) == len(whole)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_a_separate_generator_resumes_exactly(make: Any):
    check_resume(make)


@pytest.mark.parametrize("make", IN_WORKERS.values(), ids=IN_WORKERS.keys())
@pytest.mark.parametrize("is_persistent", [False, True], ids=["new workers", "persistent workers"])
def test_a_generator_that_a_worker_creates_resumes_exactly(make: Any, is_persistent: bool):
    check_resume(make, num_workers=2, persistent_workers=is_persistent)


def test_a_generator_of_another_object_is_unchanged_in_this_process():
    dataset = Noisy()
    expected = random.Random(3).random()
    draw_epochs(resumable(DataLoader(dataset), seed=1), 1)
    assert dataset.attribute.random() == expected


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (random.Random(), lambda generator: generator.random()),
        (np.random.default_rng(), lambda generator: generator.random()),
        (np.random.RandomState(), lambda generator: generator.rand()),
        (torch.Generator(), lambda generator: torch.rand((), generator=generator).item()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_seed_determines_the_numbers_of_a_generator(generator: Any, draw: Any):
    draws = [(seed_generator(generator, *key), draw(generator))[1] for key in ((1, 2), (1, 3), (1, 2))]
    assert draws[0] == draws[2] != draws[1]

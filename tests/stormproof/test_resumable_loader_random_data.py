# ruff: noqa: NPY002 (NumPy's global generator is one of those that must resume)
"""Whenever and wherever a data set draws, its batches resume exactly and equal those of a loader that always seeds."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate, get_worker_info
from torchvision import transforms
from torchvision.transforms import v2

from stormproof import resumable
from stormproof.data import rng, sample_seeds
from tests.stormproof.data.loader_kinds import draw_noise
from tests.stormproof.data.torchvision_data import make_mnist, make_transform
from tests.support.cases import slow_except

EPOCHS, BATCH_SIZE = 3, 4
OnEpoch = Callable[[Any, int], None]
DRAWS: dict[str, Callable[[], float]] = {
    "Python": lambda: random.gauss(0, 1),
    "NumPy": lambda: float(np.random.randn()),
    "torch": lambda: torch.randn(()).item(),
}


@pytest.fixture(autouse=True)
def _generators_as_they_were() -> Iterator[None]:
    state = rng.capture()
    yield
    rng.restore(state)


class DrawsAt(Dataset):
    """Draws for some samples only, which are those whose number and epoch ``condition`` accepts."""

    def __init__(self, samples: int, condition: Callable[[int, int], bool], draw: Callable[[], float]) -> None:
        self.samples, self.condition, self.draw, self.epoch = samples, condition, draw, 0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, self.draw() if self.condition(index, self.epoch) else 0.0], dtype=torch.float64)


class Noise(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + sum(draw_noise())


def collate_with_noise(samples: list[Any]) -> Any:
    return default_collate(samples), draw_noise()


def add_noise_in_worker(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.transform = make_transform(Noise())  # pyright: ignore[reportAttributeAccessIssue]


def set_epoch(loader: Any, epoch: int) -> None:
    loader.dataset.epoch = epoch


def add_noise_in_second_epoch(loader: Any, epoch: int) -> None:
    loader.dataset.transform = make_transform(*([Noise()] if epoch == 1 else []))


def make_loader(dataset: Any, **options: Any) -> DataLoader:
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, **options)


def _mnist(*more: Any) -> Any:
    return make_mnist(make_transform(*more))


CASES: dict[str, tuple[Callable[..., DataLoader], OnEpoch | None]] = {
    **{
        f"{name} in one sample": (
            lambda draw=draw, **options: make_loader(DrawsAt(11, lambda index, _: index == 7, draw), **options),
            None,
        )
        for name, draw in DRAWS.items()
    },
    **{
        f"{name} in the second epoch": (
            lambda draw=draw, **options: make_loader(DrawsAt(11, lambda _, epoch: epoch == 1, draw), **options),
            set_epoch,
        )
        for name, draw in DRAWS.items()
    },
    "a known data set": (lambda **options: make_loader(_mnist(), **options), None),
    "a known data set, transforms of version 1": (
        lambda **options: make_loader(make_mnist(transforms.ToTensor()), **options),
        None,
    ),
    "a known data set, collated with noise": (
        lambda **options: make_loader(_mnist(), collate_fn=collate_with_noise, **options),
        None,
    ),
    "a known data set, noise in its transform": (lambda **options: make_loader(_mnist(Noise()), **options), None),
    "a known data set, noise in the second epoch": (
        lambda **options: make_loader(_mnist(), **options),
        add_noise_in_second_epoch,
    ),
    "a known data set, noise in the workers": (
        lambda **options: make_loader(_mnist(), worker_init_fn=add_noise_in_worker, **options),
        None,
    ),
    "known and noisy together": (
        lambda **options: make_loader(
            Subset(
                ConcatDataset([_mnist(), _mnist(v2.RandomHorizontalFlip()), _mnist(Noise())]), list(range(0, 33, 3))
            ),
            **options,
        ),
        None,
    ),
    "a known data set, without batches": (
        lambda **options: DataLoader(_mnist(Noise()), batch_size=None, shuffle=True, **options),
        None,
    ),
}


def to_numbers(batch: Any) -> Any:
    """Returns nested lists of all numbers, which compare exactly."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    return [to_numbers(item) for item in batch] if isinstance(batch, list | tuple) else batch


def play(
    loader: Any, on_epoch: OnEpoch | None, first_epoch: int = 0, epochs: int = EPOCHS
) -> Iterator[tuple[Any, ...]]:
    """Yields (epoch, batch, state of the loader) and draws in between, as training does."""
    for epoch in range(first_epoch, epochs):
        if on_epoch is not None:
            on_epoch(loader, epoch)
        batches = iter(loader)
        while True:
            before = repr(rng.capture())
            batch = next(batches, None)
            assert repr(rng.capture()) == before
            if batch is None:
                break
            draw_noise()
            yield epoch, to_numbers(batch), loader.state_dict()


def _check_rest(make: Callable[[], DataLoader], on_epoch: OnEpoch | None, played: list[Any], at: int) -> None:
    epochs = played[-1][0] + 1
    epoch, _, state = played[at]
    is_last = at + 1 == len(played) or played[at + 1][0] != epoch
    resumed = resumable(make(), seed=8)
    resumed.load_state_dict(state)
    rest = [batch for _, batch, _ in play(resumed, on_epoch, epoch + is_last, epochs)]
    assert rest == [batch for _, batch, _ in played[at + 1 :]], at


@pytest.mark.parametrize("workers", slow_except([0, 2], [0]))
@pytest.mark.parametrize("name", CASES)
def test_all_batches_equal_those_of_a_loader_that_always_seeds(
    name: str, workers: int, monkeypatch: pytest.MonkeyPatch
):
    make, on_epoch = CASES[name]
    played = list(play(resumable(make(num_workers=workers), seed=3), on_epoch))
    monkeypatch.setattr(sample_seeds, "fetches_deterministically", lambda dataset: False)
    seeded = list(play(resumable(make(num_workers=workers), seed=3), on_epoch))
    assert [batch for _, batch, _ in played] == [batch for _, batch, _ in seeded]


@pytest.mark.parametrize("workers", slow_except([0, 2], [0]))
@pytest.mark.parametrize("name", CASES)
def test_from_every_batch_on_the_rest_is_the_same(name: str, workers: int):
    make, on_epoch = CASES[name]
    played = list(play(resumable(make(num_workers=workers), seed=3), on_epoch))
    for at in range(0, len(played), len(played) // (2 if workers else 9)):
        _check_rest(lambda: make(num_workers=workers), on_epoch, played, at)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_a_data_set_that_first_draws_after_a_thousand_samples_resumes_before_and_after(draw: Callable[[], float]):
    def make() -> DataLoader:
        return DataLoader(DrawsAt(1_200, lambda index, _: index >= 1_000, draw), batch_size=50)

    played = list(play(resumable(make(), seed=3), None, epochs=1))
    drawn_numbers = [number for _, batch, _ in played for _, number in batch]
    assert [index for index, number in enumerate(drawn_numbers) if number] == list(range(1_000, 1_200))
    assert len(set(drawn_numbers)) == 201
    for at in (3, 18, 19, 20, 22):
        _check_rest(make, None, played, at)


def test_noise_that_is_added_between_two_batches_is_seeded_from_the_next_batch_on():
    def play_with(added_after: int) -> list[torch.Tensor]:
        loader = resumable(make_loader(_mnist(*([] if added_after else [Noise()]))), seed=3)
        images = []
        for count, (image, _) in enumerate(loader, 1):
            images.append(image)
            draw_noise()
            if count == added_after:
                loader.dataset.transform.transforms.append(Noise())
        return images

    always, later = play_with(0), play_with(1)
    assert not torch.equal(always[0], later[0])
    assert all(map(torch.equal, always[1:], later[1:]))


def test_an_error_while_fetching_leaves_the_generators_of_the_process_unchanged():
    def draw_and_fail() -> float:
        raise ValueError(draw_noise())

    before = repr(rng.capture())
    loader = resumable(make_loader(DrawsAt(11, lambda index, _: index == 7, draw_and_fail)), seed=3)
    with pytest.raises(ValueError, match=r"\["):
        list(loader)
    assert repr(rng.capture()) == before


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_known_data_set_costs_neither_seeds_nor_saved_states(batch_size: int | None, monkeypatch: pytest.MonkeyPatch):
    loader = resumable(DataLoader(_mnist(), batch_size=batch_size), seed=3)
    batches = iter(loader)
    next(batches)

    def refuse(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(sample_seeds, "seed_process", refuse)
    monkeypatch.setattr(sample_seeds, "RngState", refuse)
    assert len([*batches]) == (2 if batch_size else 10)

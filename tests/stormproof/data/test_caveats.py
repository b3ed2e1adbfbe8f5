import random
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset

from stormproof import resumable
from stormproof.data.owned_objects import MAX_OBJECTS, find_owned_objects
from stormproof.data.rng import is_generator
from stormproof.resumable_loader import find_loader_caveats


class Samples(Dataset):
    """Three samples; whatever else it is given are its attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        return index


class Draws(Dataset):
    """Draws from a generator of its own, which it keeps as ``rng``."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> float:
        return self.rng.random()


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class StatefulStream(Stream):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class StatefulLoader(StatefulStream):
    def __init__(self, num_workers: int = 0, dataset: Any = None, generator: Any = None) -> None:
        self.num_workers, self.dataset, self.generator = num_workers, dataset, generator


class CustomIterLoader(DataLoader):
    def __iter__(self) -> Any:
        return super().__iter__()


class Helped(Sampler):
    """Lets a helper draw, which is no sampler."""

    def __init__(self, of: Any = None, rng: Any = None, told: bool = False) -> None:
        self.helper, self.data_source, self.known = SimpleNamespace(rng=rng), of, random.Random(1)
        if told:
            self.state_dict = self.load_state_dict = dict

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def shifted_by(rng: Any) -> Any:
    return lambda x: x + rng.random()


RNG = random.Random(0)
GENERATORS = {
    "Python's": random.Random(0),
    "torch's": torch.Generator(),
    "NumPy's": np.random.default_rng(0),
    "NumPy's old": np.random.RandomState(0),
}
NESTED = {
    "an attribute": (Samples(rng=RNG), "dataset.rng"),
    "a subset": (Subset(Samples(rng=RNG), [0]), "dataset.dataset.rng"),
    "a concatenation": (ConcatDataset([Samples(), Samples(rng=RNG)]), "dataset.datasets[1].rng"),
    "transforms": (
        Samples(transform=SimpleNamespace(transforms=[abs, SimpleNamespace(g=RNG)])),
        "dataset.transform.transforms[1].g",
    ),
    "a dictionary": (Samples(by={"x": RNG}), "dataset.by['x']"),
    "a closure": (Samples(transform=shifted_by(RNG)), "dataset.transform:rng"),
    "a bound method": (Samples(transform=Draws(RNG).__getitem__), "dataset.transform.__self__.rng"),
    "a partial function": (Samples(transform=partial(max, key=RNG)), "dataset.transform.keywords['key']"),
}


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS.keys())
def test_a_generator_of_a_data_set_is_named_if_another_package_fetches_the_samples(generator: Any):
    (reason,) = find_loader_caveats(resumable(StatefulLoader(dataset=Samples(rng=generator))))
    assert reason.startswith(f"dataset.rng is a separate random number generator ({type(generator).__name__}): use the")


@pytest.mark.parametrize(("dataset", "path"), NESTED.values(), ids=NESTED.keys())
def test_generators_are_found_in_nested_objects(dataset: Any, path: str):
    assert [name for name, _ in find_owned_objects({"dataset": dataset}, is_generator)] == [path]
    assert find_loader_caveats(resumable(DataLoader(dataset))) == []


def test_a_data_set_that_says_it_draws_nothing_is_believed():
    assert find_loader_caveats(resumable(DataLoader(Samples(rng=RNG, draws_random_numbers=False)))) == []


WRAPPED = {
    "tensors": (lambda: DataLoader(TensorDataset(torch.zeros(3)), shuffle=True), None),
    "a data set that draws from the global ones": (lambda: DataLoader(Draws(random)), None),
    "workers": (lambda: DataLoader(Samples(), num_workers=2), None),
    "a generator of the loader's": (lambda: DataLoader(Samples(), shuffle=True, generator=torch.Generator()), None),
    "whichever worker is ready": (lambda: DataLoader(Samples(), num_workers=2, in_order=False), "set in_order=True"),
    "no worker to be ready": (lambda: DataLoader(Samples(), in_order=False), None),
    "a stream": (lambda: DataLoader(Stream()), "implement both and set num_workers=0"),
    "a stream with a state": (lambda: DataLoader(StatefulStream()), None),
    "a stream with a state in workers": (lambda: DataLoader(StatefulStream(), num_workers=2), "set num_workers=0"),
    "a stateful loader": (StatefulLoader, None),
    "a stateful loader with workers": (lambda: StatefulLoader(2), "wrap a torch DataLoader instead"),
    "a stateful loader whose workers draw nothing": (
        lambda: StatefulLoader(2, SimpleNamespace(draws_random_numbers=False)),
        None,
    ),
    "a stateful loader whose data set has a generator": (
        lambda: StatefulLoader(dataset=Samples(rng=RNG)),
        "dataset.rng is a separate random number generator",
    ),
    "a stateful loader whose data set tells its state": (lambda: StatefulLoader(2, StatefulStream()), None),
    "a stateful loader with a generator": (
        lambda: StatefulLoader(generator=torch.Generator()),
        "or remove the generator",
    ),
    "an iterator of its own": (lambda: CustomIterLoader(Samples()), "implement state_dict and load_state_dict"),
    "a sampler with a generator": (lambda: DataLoader(Samples(), sampler=Helped()), None),
    "a sampler whose helper has one": (
        lambda: DataLoader(Samples(), sampler=Helped(rng=RNG)),
        "sampler.helper.rng is a random number generator",
    ),
    "a sampler that tells its state": (lambda: DataLoader(Samples(), sampler=Helped(rng=RNG, told=True)), None),
    "a sampler that sees the data set": (
        lambda: DataLoader(data := Samples(rng=RNG), sampler=Helped(of=data)),
        None,
    ),
}


@pytest.mark.parametrize(("make", "words"), WRAPPED.values(), ids=WRAPPED.keys())
def test_what_cannot_be_exact_is_named_once_with_the_way_out_and_nothing_else(make: Any, words: str | None):
    reasons = find_loader_caveats(resumable(make()))
    assert len(reasons) == (words is not None)
    assert all(str(words) in reason for reason in reasons)


@pytest.mark.parametrize("loader", [DataLoader(Samples()), StatefulLoader(), [1, 2]], ids=["plain", "stateful", "list"])
def test_what_is_not_wrapped_is_told_to_be(loader: Any):
    (reason,) = find_loader_caveats(loader)
    assert type(loader).__name__ in reason
    assert "resumable(loader)" in reason


def test_a_loader_within_a_data_set_and_what_is_data_are_not_searched():
    hidden = {"loader": DataLoader(Samples(), generator=torch.Generator()), "type": SimpleNamespace, "module": random}
    assert list(find_owned_objects({**hidden, "far down a list": [0] * 200 + [RNG]}, is_generator)) == []


def test_the_search_ends_in_a_circle_and_names_what_it_meets_twice_once():
    ring = SimpleNamespace(rng=RNG)
    ring.alias = [ring, RNG]
    assert list(find_owned_objects({"ring": ring}, is_generator)) == [("ring.rng", RNG)]


def test_the_search_ends_in_the_depths():
    chain: Any = RNG
    for _ in range(MAX_OBJECTS):
        chain = [chain]
    assert list(find_owned_objects({"chain": chain}, is_generator)) == []

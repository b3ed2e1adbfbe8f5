import random
import weakref
from collections import UserDict, deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from stormproof.data.owned_objects import MAX_ITEMS, find_owned_objects
from stormproof.data.rng import is_generator

RNG = random.Random(1)


@dataclass(slots=True)
class Slotted:
    rng: Any


class Raises:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


def closure() -> Any:
    rng = RNG
    return lambda: rng.random() + 1


@pytest.mark.parametrize(
    ("owner", "path"),
    [
        ({"a": [(RNG,)]}, "x['a'][0][0]"),
        (deque([RNG]), "x[0]"),
        (Slotted(RNG), "x.rng"),
        (partial(max, RNG), "x.args[0]"),
        (RNG.random, "x.__self__"),
        (closure(), "x:rng"),
        (UserDict(a=RNG), "x.data['a']"),
    ],
)
def test_an_object_is_found_by_its_path(owner: Any, path: str):
    assert list(find_owned_objects({"x": owner}, is_generator)) == [(path, RNG)]


def test_modules_are_searched_by_the_names_of_their_children():
    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    module[0].rng = RNG
    assert list(find_owned_objects({"net": module}, is_generator)) == [("net.0.rng", RNG)]


def test_objects_that_raise_are_skipped():
    gone = weakref.proxy(type("Gone", (), {})())
    owned = find_owned_objects({"raises": Raises(), "gone": gone, "items": [Raises(), gone, RNG]}, is_generator)
    assert list(owned) == [("items[2]", RNG)]


def test_items_beyond_max_items_are_not_searched():
    assert list(find_owned_objects({"x": [0] * MAX_ITEMS + [RNG]}, is_generator)) == []

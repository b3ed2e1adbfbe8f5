import functools
import pickle
import threading
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from stormproof.checkpoint.loadable import is_loadable_once_staged


@dataclass
class _Options:
    width: int = 8


class _Pair(NamedTuple):
    one: int
    two: int


class _Weight(torch.nn.Parameter):
    owner: Any = None


def _make_weight(owner: Any) -> _Weight:
    weight = _Weight(torch.ones(1))
    weight.owner = owner
    return weight


ACCEPTED = {
    "plain values": {"a": 1, "b": 2.5, "c": None, "d": "word", "e": True, "f": b"bytes", "g": 1j},
    "containers": {"a": [1, (2, 3)], "b": {"c": {4, 5}}, "d": OrderedDict(e=6)},
    "tensors": {"a": torch.ones(2), "b": [torch.nn.Parameter(torch.ones(2))], "c": torch.empty(0, dtype=torch.bool)},
    "kinds of tensors": {"a": torch.float16, "b": torch.device("cpu"), "c": torch.Size([1, 2])},
    "a parameter of a subclass": {"a": _make_weight("b")},
    "a state_dict": torch.nn.Linear(2, 2).state_dict(),
}

REFUSED = {
    "a path": {"hyper_parameters": {"folder": Path("x")}},
    "a data class": {"a": [1, _Options()]},
    "a named tuple": {"a": _Pair(1, 2)},
    "a class": {"a": {"b": _Options}},
    "a partial": {"a": functools.partial(print, 1)},
    "a lambda": {"a": lambda: 1},
    "what nobody can pickle": {"a": threading.Lock()},
    "a module": {"a": torch.nn.ReLU()},
    "an array": {"a": np.ones(2)},
    "more than one": {"a": Fraction(1), "b": torch.ones(1), "c": {"d": (0, Fraction(2))}},
    "inside an ordered dictionary": {"a": OrderedDict(b=Fraction(1))},
    "a dictionary of a type that is refused": {"a": defaultdict(_Options)},
    "a key": {"a": {Fraction(1): 2}},
    "an attribute of a parameter": {"a": _make_weight(Fraction(1))},
}


def _loads(value: Any, path: Path) -> bool:
    try:
        torch.save(value, path)
        torch.load(path, weights_only=True)
    except (pickle.PicklingError, pickle.UnpicklingError, AttributeError, TypeError):
        return False
    return True


@pytest.mark.parametrize("checkpoint", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_torch_loads_again_is_accepted(checkpoint: dict[str, Any], tmp_path: Path):
    assert _loads(checkpoint, tmp_path / "x.ckpt")
    assert is_loadable_once_staged(checkpoint)


@pytest.mark.parametrize("checkpoint", REFUSED.values(), ids=REFUSED.keys())
def test_what_torch_would_refuse_is_refused(checkpoint: dict[str, Any], tmp_path: Path):
    assert not _loads(checkpoint, tmp_path / "x.ckpt")
    assert not is_loadable_once_staged(checkpoint)


def test_a_type_that_the_user_has_allowed_is_accepted():
    with torch.serialization.safe_globals([_Options]):
        assert is_loadable_once_staged({"a": _Options()})
    assert not is_loadable_once_staged({"a": _Options()})


def test_the_weights_themselves_are_not_written(monkeypatch: pytest.MonkeyPatch):
    """A model of gigabytes must not be pickled into memory only to look at types."""
    written: list[int] = []
    save = torch.save

    def counting(value: Any, buffer: Any) -> None:
        save(value, buffer)
        written.append(buffer.tell())

    monkeypatch.setattr(torch, "save", counting)
    weights = torch.nn.Linear(1000, 100).state_dict()  # 400 kB, in an OrderedDict
    assert not is_loadable_once_staged({"state_dict": weights, "a": Fraction(1)})
    assert written
    assert max(written) < 20_000

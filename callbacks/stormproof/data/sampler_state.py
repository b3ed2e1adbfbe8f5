"""What a loader's samplers remember from one pass to the next."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from stormproof.data.rng import State, capture_generators, generators_of, restore_generators
from stormproof.data.shard import Replica

SCALARS = (int, float, bool, str, type(None))


class SamplerState:
    """The samplers of ``loader``, those inside them included, and all that can be known of their state.

    That is: their own generators; what a ``state_dict`` of theirs holds; and the numbers, words and tensors among their
    attributes, and lists of them, that have changed since this object was made (a count of passes, an order).

    Args:
        loader: a map-style DataLoader.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        roots = {"sampler": loader.sampler, "batch_sampler": loader.batch_sampler}
        self.samplers: dict[str, Any] = dict(_found(roots, set()))
        self._initial = {name: deepcopy(self._values(sampler)) for name, sampler in self.samplers.items()}

    @property
    def remember(self) -> bool:
        """Whether a pass may leave a trace in them; torch's own leave none but in their generators."""
        return not all(map(_is_torchs, self.samplers.values())) or bool(self.capture())

    def capture(self) -> State:
        """Their state, as plain values and tensors; empty if they remember nothing."""
        states = {name: self._capture(name, sampler) for name, sampler in self.samplers.items()}
        states["loader"] = {"generators": _generator_states(self._loader)}
        states = {name: {kind: part for kind, part in state.items() if part} for name, state in states.items()}
        return {name: state for name, state in states.items() if state}

    def restore(self, state: State) -> None:
        """Puts them into ``state``."""
        for name, sampler in self.samplers.items():
            wanted = {**self._initial[name], **state.get(name, {}).get("values", {})}
            attributes = getattr(sampler, "__dict__", {})
            for later in self._values(sampler).keys() - wanted:
                del attributes[later]
            attributes.update(deepcopy(wanted))
        for name, parts in state.items():
            owner: Any = self._loader if name == "loader" else self.samplers[name]
            restore_generators(owner, parts.get("generators", {}))
            if "state_dict" in parts:
                owner.load_state_dict(parts["state_dict"])

    def set_epoch(self, epoch: int) -> None:
        """Tells those that count epochs."""
        for sampler in self.samplers.values():
            if callable(getattr(sampler, "set_epoch", None)):
                sampler.set_epoch(epoch)

    def replica(self) -> Replica | None:
        """The part of the order that one of them takes by itself; None if none does."""
        for sampler in self.samplers.values():
            rank, count = getattr(sampler, "rank", None), getattr(sampler, "num_replicas", None)
            if isinstance(rank, int) and isinstance(count, int):
                return Replica(rank, count)
        return None

    def _capture(self, name: str, sampler: Any) -> State:
        if is_stateful(sampler):
            return {"state_dict": deepcopy(sampler.state_dict())}  # it may be what the sampler goes on with
        now, initial = self._values(sampler), self._initial[name]
        changed = {key: value for key, value in now.items() if key not in initial or not _equal(initial[key], value)}
        return {"generators": _generator_states(sampler), "values": deepcopy(changed)}

    def _values(self, sampler: object) -> dict[str, Any]:
        """The attributes that are plain values; a list that is the data set itself is none of the sampler's."""
        attributes = getattr(sampler, "__dict__", {})
        if _is_torchs(sampler):  # its lists of indices and its weights can be long, and it changes none of them
            return {key: each for key, each in attributes.items() if type(each) in SCALARS}
        dataset = self._loader.dataset
        return {key: each for key, each in attributes.items() if each is not dataset and _is_plain(each)}


def is_stateful(owner: object) -> bool:
    """Whether ``owner`` can hand out its state and take it back."""
    return callable(getattr(owner, "state_dict", None)) and callable(getattr(owner, "load_state_dict", None))


def _generator_states(owner: object) -> State:
    return capture_generators(owner) if generators_of(owner) else {}


def _is_torchs(sampler: object) -> bool:
    return type(sampler).__module__.startswith("torch.")


def _is_plain(value: Any) -> bool:
    """Whether it can be saved and loaded as it is: no class but torch's and Python's own."""
    if type(value) in {list, tuple}:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, (*value.keys(), *value.values())))
    return type(value) in {*SCALARS, torch.Tensor}


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return one == other


def _found(owners: dict[str, Any], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The samplers among ``owners`` and in their attributes, each once, by its path."""
    for path, owner in owners.items():
        if owner is None or id(owner) in seen or type(owner) in {list, tuple, range, torch.Tensor}:
            continue
        seen.add(id(owner))
        yield path, owner
        inner = {
            f"{path}.{name}": value
            for name, value in getattr(owner, "__dict__", {}).items()
            if isinstance(value, Sampler) or name in {"sampler", "batch_sampler"}
        }
        yield from _found(inner, seen)

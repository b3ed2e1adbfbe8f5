"""Captures and restores the state of a loader's samplers."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from stormproof.data.rng import State, capture_generators, find_attribute_generators, restore_generators
from stormproof.data.shard import Replica

SCALAR_TYPES = (int, float, bool, str, type(None))


class SamplerState:
    """State of the samplers of ``loader``, including nested samplers.

    The state of a sampler is its ``state_dict`` if it has one. Otherwise, the state consists of the attributes that are
    generators, and of attributes that have changed since this object was created, such as an epoch counter. The latter
    must be numbers, strings, tensors or containers of them.

    Args:
        loader: Map-style DataLoader.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        roots = {"sampler": loader.sampler, "batch_sampler": loader.batch_sampler}
        self.samplers: dict[str, Any] = dict(find_samplers(roots, set()))
        self._initial_values = {
            name: deepcopy(self._collect_values(sampler)) for name, sampler in self.samplers.items()
        }

    @property
    def has_state(self) -> bool:
        """True if an epoch may change the samplers. Torch's own samplers change only their generators."""
        return not all(map(_is_torch_sampler, self.samplers.values())) or bool(self.capture())

    def capture(self) -> State:
        """Returns the state of the samplers, as plain values and tensors. Empty if they have no state."""
        states = {name: self._capture(name, sampler) for name, sampler in self.samplers.items()}
        states["loader"] = {"generators": _capture_generator_states(self._loader)}
        states = {
            name: {part_name: part for part_name, part in state.items() if part} for name, state in states.items()
        }
        return {name: state for name, state in states.items() if state}

    def restore(self, state: State) -> None:
        """Restores the samplers to ``state``."""
        for name, sampler in self.samplers.items():
            restored_values = {**self._initial_values[name], **state.get(name, {}).get("values", {})}
            attributes = getattr(sampler, "__dict__", {})
            for added_name in self._collect_values(sampler).keys() - restored_values:
                del attributes[added_name]
            attributes.update(deepcopy(restored_values))
        for name, parts in state.items():
            owner: Any = self._loader if name == "loader" else self.samplers[name]
            restore_generators(owner, parts.get("generators", {}))
            if "state_dict" in parts:
                owner.load_state_dict(parts["state_dict"])

    def set_epoch(self, epoch: int) -> None:
        """Calls ``set_epoch`` of all samplers that have it."""
        for sampler in self.samplers.values():
            if callable(getattr(sampler, "set_epoch", None)):
                sampler.set_epoch(epoch)

    def replica(self) -> Replica | None:
        """Returns rank and world size of a sampler that divides the order. None without such a sampler."""
        for sampler in self.samplers.values():
            rank, num_replicas = getattr(sampler, "rank", None), getattr(sampler, "num_replicas", None)
            if isinstance(rank, int) and isinstance(num_replicas, int):
                return Replica(rank, num_replicas)
        return None

    def _capture(self, name: str, sampler: Any) -> State:
        if is_stateful(sampler):
            return {"state_dict": deepcopy(sampler.state_dict())}  # the sampler may modify it later
        current_values, initial_values = self._collect_values(sampler), self._initial_values[name]
        changed_values = {
            key: value
            for key, value in current_values.items()
            if key not in initial_values or not _is_equal(initial_values[key], value)
        }
        return {"generators": _capture_generator_states(sampler), "values": deepcopy(changed_values)}

    def _collect_values(self, sampler: object) -> dict[str, Any]:
        """Returns the attributes with plain values, except a list that is the data set itself."""
        attributes = getattr(sampler, "__dict__", {})
        if _is_torch_sampler(sampler):  # torch's samplers do not modify their indices and weights, which can be long
            return {key: value for key, value in attributes.items() if type(value) in SCALAR_TYPES}
        dataset = self._loader.dataset
        return {key: value for key, value in attributes.items() if value is not dataset and is_plain(value)}


def is_stateful(owner: object) -> bool:
    """Returns whether ``owner`` has ``state_dict`` and ``load_state_dict``."""
    return callable(getattr(owner, "state_dict", None)) and callable(getattr(owner, "load_state_dict", None))


def _capture_generator_states(owner: object) -> State:
    return capture_generators(owner) if find_attribute_generators(owner) else {}


def _is_torch_sampler(sampler: object) -> bool:
    return type(sampler).__module__.startswith("torch.")


def is_plain(value: Any) -> bool:
    """Returns whether a value consists of scalars, strings, tensors and containers of them."""
    if type(value) in {list, tuple}:
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, (*value.keys(), *value.values())))
    return type(value) in {*SCALAR_TYPES, torch.Tensor}


def _is_equal(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_is_equal, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_is_equal(value, second[key]) for key, value in first.items())
    return first == second


def find_samplers(candidates: dict[str, Any], visited_ids: set[int]) -> Iterator[tuple[str, Any]]:
    """Yields path and object of each sampler among ``candidates`` and in their attributes, once."""
    for path, owner in candidates.items():
        if owner is None or id(owner) in visited_ids or type(owner) in {list, tuple, range, torch.Tensor}:
            continue
        visited_ids.add(id(owner))
        yield path, owner
        inner_candidates = {
            f"{path}.{name}": value
            for name, value in getattr(owner, "__dict__", {}).items()
            if issubclass(type(value), Sampler) or name in {"sampler", "batch_sampler"}
        }
        yield from find_samplers(inner_candidates, visited_ids)

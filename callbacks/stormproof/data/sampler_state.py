"""What a loader's samplers remember from one pass to the next."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from stormproof.data.replicas import Replica
from stormproof.rng import State, capture_generators, generators_of, restore_generators


class SamplerState:
    """The samplers of ``loader``, those inside them included, and all that can be known of their state.

    That is: their own generators; what a ``state_dict`` of theirs holds; and the numbers and words among their
    attributes that have changed since this object was made (a count of passes, say).

    Args:
        loader: a map-style DataLoader.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        roots = {"sampler": loader.sampler, "batch_sampler": loader.batch_sampler}
        self.samplers: dict[str, Any] = dict(_found(roots, set()))
        self._initial = {name: _scalars(sampler) for name, sampler in self.samplers.items()}

    @property
    def remember(self) -> bool:
        """Whether a pass may leave a trace in them; torch's own leave none but in their generators."""
        others = any(not type(sampler).__module__.startswith("torch.") for sampler in self.samplers.values())
        return others or bool(self.capture())

    def capture(self) -> State:
        """Their state, as plain values and tensors; empty if they remember nothing."""
        states = {name: self._capture(name, sampler) for name, sampler in self.samplers.items()}
        states["loader"] = {"generators": _generator_states(self._loader)}
        states = {name: {kind: part for kind, part in state.items() if part} for name, state in states.items()}
        return {name: state for name, state in states.items() if state}

    def restore(self, state: State) -> None:
        """Puts them into ``state``."""
        for name, sampler in self.samplers.items():
            wanted = {**self._initial[name], **state.get(name, {}).get("scalars", {})}
            attributes = getattr(sampler, "__dict__", {})
            for later in _scalars(sampler).keys() - wanted:
                del attributes[later]
            attributes.update(wanted)
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
            return {
                "state_dict": deepcopy(sampler.state_dict())
            }  # it may be the very one that the sampler goes on with
        now, initial = _scalars(sampler), self._initial[name]
        changed = {key: value for key, value in now.items() if key not in initial or initial[key] != value}
        return {"generators": _generator_states(sampler), "scalars": changed}


def is_stateful(owner: object) -> bool:
    """Whether ``owner`` can hand out its state and take it back."""
    return callable(getattr(owner, "state_dict", None)) and callable(getattr(owner, "load_state_dict", None))


def _generator_states(owner: object) -> State:
    return capture_generators(owner) if generators_of(owner) else {}


def _scalars(sampler: object) -> dict[str, Any]:
    values = getattr(sampler, "__dict__", {})
    return {name: value for name, value in values.items() if isinstance(value, int | float | str | None)}


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

"""Reads the state of the program outside of modules and optimizers: variables, generators, workers, averages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from stormproof.replay.recorder.batches import BatchLog
from stormproof.replay.recorder.hashing import hash_tensors, hash_value
from stormproof.replay.recorder.random_generators import hash_generators, is_generator
from stormproof.replay.recorder.session import Session
from stormproof.replay.recorder.user_code import UserCode
from stormproof.replay.recorder.variable_values import describe_value
from stormproof.replay.recorder.variables import VariableCollector
from stormproof.user_objects import read_attributes

_WRAPPED = ("dataset", "sampler", "batch_sampler", "base_sampler")
"""Attributes of loaders, data sets and samplers that are data sets and samplers."""
_MAX_OWNERS = 32


@dataclass(frozen=True, slots=True)
class ProgramComponents:
    """Components of a step, and short texts of the small variables."""

    components: dict[str, str | int]
    texts: dict[str, str]


class ProgramState:
    """Reads the variables and generators of the program."""

    def __init__(self, session: Session, batches: BatchLog) -> None:
        self._batches = batches
        self._user_code = UserCode(session.root)

    def read(self, frame: FrameType, modules: list[nn.Module], parameters: list[torch.Tensor]) -> ProgramComponents:
        """Returns the components ``variables/…``, ``rng/generators/…``, ``rng/workers``, ``averaged``."""
        collector = VariableCollector(self._user_code)
        owners = self._list_data_objects()
        collector.add_objects(owners)
        collector.add_frames(frame)
        collector.add_globals()
        collector.add_modules(modules)
        found = collector.found
        variables = found.values | found.large
        components: dict[str, str | int] = {f"variables/{name}": hash_value(value) for name, value in variables.items()}
        generators = {id(generator): generator for generator in [*_list_generators(owners), *found.generators]}
        generators.pop(id(torch.default_generator), None)
        components.update(hash_generators(generators.values()))
        seeds = self._batches.list_worker_seeds()
        if seeds:
            components["rng/workers"] = hash_value(seeds)
        averages = [tensors for tensors in found.tensor_lists if _is_average(tensors, parameters)]
        if averages:
            components["averaged"] = hash_tensors([tensor for tensors in averages for tensor in tensors])
        return ProgramComponents(components, {name: describe_value(value) for name, value in found.values.items()})

    def _list_data_objects(self) -> list[object]:
        """Returns the training loaders, their data sets and samplers, and those that they wrap."""
        owners: list[object] = list(self._batches.list_training_loaders())
        for owner in owners:  # grows
            attributes = read_attributes(owner)
            wrapped = [attributes[name] for name in _WRAPPED if attributes.get(name) is not None]
            owners.extend(value for value in wrapped if len(owners) < _MAX_OWNERS and _is_new(value, owners))
        return owners


def _is_new(value: object, owners: list[object]) -> bool:
    return all(value is not owner for owner in owners)


def _list_generators(owners: list[object]) -> list[Any]:
    values = [value for owner in owners for value in read_attributes(owner).values()]
    return [value for value in values if is_generator(value)]


def _is_average(tensors: list[torch.Tensor], parameters: list[torch.Tensor]) -> bool:
    """Returns whether tensors may be averages of ``parameters``: other tensors that include all their shapes."""
    if len(tensors) < len(parameters):
        return False
    own = {parameter.data_ptr() for parameter in parameters if parameter.numel()}
    if any(tensor.layout is torch.strided and tensor.data_ptr() in own for tensor in tensors):
        return False
    return not Counter(parameter.shape for parameter in parameters) - Counter(tensor.shape for tensor in tensors)

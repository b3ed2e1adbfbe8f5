"""Collects variables of the user's program: locals, globals and attributes."""

from __future__ import annotations

import argparse
import inspect
import random
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from stormproof.replay.ledger import CALLBACK
from stormproof.replay.recorder.random_generators import is_generator
from stormproof.replay.recorder.user_code import UserCode
from stormproof.replay.recorder.variable_values import is_large_value, is_skipped_name, is_small_value
from stormproof.user_objects import is_a, read_attributes, to_builtin

MAX_VARIABLES = 400
_MAX_DEPTH = 2  # of attributes of attributes
_MAX_OBJECTS = 16  # of a list
_MAX_LARGE = 32
_SKIPPED_TYPES = {type, ModuleType, FunctionType, BuiltinFunctionType}


@dataclass
class Variables:
    """Variables of one step.

    Attributes:
        values: Small values by name, ``function.variable`` or ``Class.attribute``.
        large: Large values by name. Only their hashes are recorded.
        generators: Random generators.
        tensor_lists: Lists of tensors that may be averaged parameters.
    """

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    large: dict[str, Any] = field(default_factory=dict[str, Any])
    generators: list[Any] = field(default_factory=list[Any])
    tensor_lists: list[list[torch.Tensor]] = field(default_factory=list[list[torch.Tensor]])


class VariableCollector:
    """Collects the variables of one step."""

    def __init__(self, user_code: UserCode) -> None:
        self.found = Variables()
        self._user_code = user_code
        self._seen: set[int] = set()

    def add_frames(self, frame: FrameType | None) -> None:
        """Adds the locals of the user's functions on the stack, and the callbacks of a trainer on the stack."""
        while frame is not None:
            code = frame.f_code
            if self._user_code.is_user_file(code.co_filename):
                if code.co_flags & inspect.CO_OPTIMIZED:  # a function, not the body of a module or class
                    self._add_all(code.co_name, _read_locals(frame))
            elif code.co_filename.endswith("trainer.py") and code.co_varnames[:1] == ("self",):
                self._add_callbacks(_read_locals(frame).get("self"))
            frame = frame.f_back

    def add_globals(self) -> None:
        """Adds the globals of the user's modules."""
        for name, module in self._user_code.list_modules():
            self._add_all(name, vars(module))

    def add_objects(self, objects: Iterable[object]) -> None:
        """Adds attributes of objects of any class, such as data sets and samplers."""
        for value in objects:
            self._add_attributes(value, _MAX_DEPTH - 1)

    def add_modules(self, modules: Iterable[nn.Module]) -> None:
        """Adds attributes of modules of the user's classes, and the states of metrics."""
        for module in modules:
            if _is_metric(module):
                self._add_metric(module)
            elif self._user_code.is_user_class(type(module)):
                self._add_attributes(module, _MAX_DEPTH - 1)

    def _add_callbacks(self, trainer: Any) -> None:
        attributes = read_attributes(trainer)
        handler = read_attributes(attributes.get("callback_handler"))  # transformers
        callbacks: Any = attributes.get("callbacks", handler.get("callbacks"))
        for callback in callbacks if is_a(callbacks, list) else ():
            name, is_users = type(callback).__name__, self._user_code.is_user_class(type(callback))
            if not any(word in name for word in ("Progress", "Timer", "Summary", "Printer")):
                self._add_attributes(callback, _MAX_DEPTH - 1, name if is_users else f"{CALLBACK}{name}")

    def _add_all(self, owner: str, variables: Mapping[str, Any]) -> None:
        for name, value in list(variables.items()):
            self._add(f"{owner}.{name}", name, value, _MAX_DEPTH)

    def _add(self, full_name: str, name: str, value: Any, depth: int) -> None:
        value = to_builtin(value)
        if type(value) in _SKIPPED_TYPES or name.startswith("__") or len(self.found.values) >= MAX_VARIABLES:
            return
        if is_a(value, list | tuple | dict) and _is_tensor_list(value):
            self.found.tensor_lists.append(list(value.values()) if is_a(value, dict) else list(value))
        if is_small_value(value):
            self._add_small(full_name, name, value)
        elif is_large_value(value):
            self._add_large(full_name, value)
        elif is_generator(value):
            if self._is_new(value):
                self.found.generators.append(value)
        elif is_a(value, list | tuple | dict | set):
            self._add_container(value, depth)
        elif _is_metric(value):
            self._add_metric(value)
        elif depth and self._is_plain_object(value):
            self._add_attributes(value, depth - 1)

    def _add_small(self, full_name: str, name: str, value: Any) -> None:
        if not is_skipped_name(name, value):
            self._add_value(full_name, value, self.found.values)

    def _add_large(self, full_name: str, value: Any) -> None:
        if len(self.found.large) < _MAX_LARGE:
            self._add_value(full_name, value, self.found.large)

    def _add_container(self, value: Any, depth: int) -> None:
        """Adds the attributes of objects in a container."""
        if not depth or len(value) > _MAX_OBJECTS:
            return
        for item in list(value.values()) if is_a(value, dict) else list(value):
            if self._is_plain_object(item):
                self._add_attributes(item, depth - 1)
            elif is_generator(item) and self._is_new(item):
                self.found.generators.append(item)

    def _add_attributes(self, value: Any, depth: int, owner: str = "") -> None:
        attributes = read_attributes(value)
        if not attributes or not self._is_new(value):
            return
        hidden = self._user_code.list_framework_attributes(type(value))
        is_torch = type(value).__module__.startswith("torch.utils.data")  # its samplers have only one state
        names = ("epoch",) if is_torch else tuple(attributes)
        for name in names:
            attribute = attributes.get(name, nn)  # a module is skipped
            if name not in hidden and not is_a(attribute, nn.Module):
                self._add(f"{owner or type(value).__name__}.{name}", name, attribute, depth)

    def _add_metric(self, metric: Any) -> None:
        if type(metric).__name__ == "_ResultMetric" or not self._is_new(metric):
            return
        name, attributes = type(metric).__name__, read_attributes(metric)
        for state in ("_update_count", *attributes["_defaults"]):
            self._add_value(f"{name}.{state}", attributes.get(state), self.found.values)

    def _add_value(self, name: str, value: Any, values: dict[str, Any]) -> None:
        """Adds a value. Names of several objects of one class get numbers."""
        unique, number = name, 1
        while unique in self.found.values or unique in self.found.large:
            number += 1
            unique = f"{name}#{number}"
        values[unique] = value

    def _is_new(self, value: object) -> bool:
        if id(value) in self._seen:
            return False
        self._seen.add(id(value))
        return True

    def _is_plain_object(self, value: object) -> bool:
        if is_a(value, nn.Module | torch.optim.Optimizer | torch.Tensor | random.Random):
            return False
        return is_a(value, SimpleNamespace | argparse.Namespace) or self._user_code.is_user_class(type(value))


def _read_locals(frame: FrameType) -> dict[str, Any]:
    """Returns the locals of a function.

    Before Python 3.13, the frame keeps the dictionary that ``f_locals`` returns, and its tensors alive. It is emptied
    unless the program uses it: the dictionary is a copy, which ``locals()`` creates again.
    """
    variables = frame.f_locals
    copy = dict(variables)
    if sys.version_info < (3, 13) and sys.getrefcount(variables) <= 3:
        variables.clear()
    return copy


def _is_tensor_list(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return bool(items) and all(is_a(item, torch.Tensor) for item in items)


def _is_metric(value: object) -> bool:
    """Returns whether an object has the attributes of a metric of torchmetrics."""
    attributes = read_attributes(value)
    return is_a(attributes.get("_defaults"), dict) and is_a(attributes.get("_update_count"), int)

"""Finds objects in the attributes and containers of other objects."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from types import BuiltinMethodType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from stormproof.user_objects import read_attributes

MAX_OBJECTS = 10_000
MAX_ITEMS = 100
"""Maximum number of items searched per container."""
_LEAF_TYPES = (str, bytes, int, float, complex, type(None), type, ModuleType, torch.Tensor)
_LOADER_TYPES = (DataLoader, Sampler)
_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_MODULE_HOOKS = sorted(name for name in _MODULE_INTERNALS if name.endswith("_hooks"))
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def find_owned_objects(
    roots: Mapping[str, Any], is_match: Callable[[Any], bool], should_descend: Callable[[Any], bool] = lambda _: True
) -> Iterator[tuple[str, Any]]:
    """Yields ``(path, object)`` for each object reachable from ``roots`` that satisfies ``is_match``, once.

    Searches attributes, slots, dicts, lists, tuples, deques, closures, partial functions and bound methods, breadth
    first. Does not search loaders, samplers, or objects for which ``should_descend`` is false. Stops after
    ``MAX_OBJECTS`` objects.

    Example:
        >>> [path for path, _ in find_owned_objects({"x": {"jitter": [1, 2.0]}}, lambda item: isinstance(item, float))]
        ["x['jitter'][1]"]
    """
    visited_ids: set[int] = set()
    queue = deque(roots.items())
    while queue and len(visited_ids) < MAX_OBJECTS:
        path, owner = queue.popleft()
        if id(owner) in visited_ids:
            continue
        try:
            is_matching, is_leaf = is_match(owner), isinstance(owner, _LEAF_TYPES)
            parts = (
                []
                if is_leaf or isinstance(owner, _LOADER_TYPES) or not should_descend(owner)
                else list(iterate_parts(path, owner))
            )
        except Exception:  # noqa: BLE001, S112 (attribute access may raise anything, such as a dead weakref proxy)
            continue
        if is_matching:
            yield path, owner
        if not is_leaf:
            visited_ids.add(id(owner))
            queue.extend(parts)


def iterate_parts(path: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """Yields path and value of each attribute or item of ``owner``, whose path is ``path``."""
    if isinstance(owner, dict):
        yield from ((f"{path}[{key!r}]", value) for key, value in islice(owner.items(), MAX_ITEMS))
    elif isinstance(owner, list | tuple | deque):
        yield from ((f"{path}[{index}]", value) for index, value in enumerate(islice(owner, MAX_ITEMS)))
    elif isinstance(owner, partial):
        yield from ((f"{path}.{name}", getattr(owner, name)) for name in ("func", "args", "keywords"))
    elif isinstance(owner, MethodType | BuiltinMethodType):
        yield f"{path}.__self__", owner.__self__
    elif isinstance(owner, FunctionType | GeneratorType):
        yield from _iterate_variables(path, owner)
    elif isinstance(owner, nn.Module):
        yield from ((f"{path}.{name}", child) for name, child in owner.named_children())
        yield from ((f"{path}.{name}", vars(owner)[name]) for name in _MODULE_HOOKS if vars(owner)[name])
        for name, parameter in owner.named_parameters(recurse=False):
            yield from ((f"{path}.{name}.{hooks}", getattr(parameter, hooks)) for hooks in _TENSOR_HOOKS)
        yield from ((f"{path}.{name}", value) for name, value in vars(owner).items() if name not in _MODULE_INTERNALS)
    else:
        slots = [name for cls in type(owner).__mro__ for name in _list_slots(cls)]
        yield from ((f"{path}.{name}", getattr(owner, name)) for name in slots if hasattr(owner, name))
        yield from ((f"{path}.{name}", value) for name, value in read_attributes(owner).items())


def _iterate_variables(path: str, owner: FunctionType | GeneratorType[Any, Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the local variables of a generator, or the closure variables and attributes of a function."""
    if isinstance(owner, GeneratorType):
        frame_variables = owner.gi_frame.f_locals if owner.gi_frame else {}
        variables = dict(frame_variables)
        if sys.version_info < (3, 13):
            frame_variables.clear()  # a copy in which deleted objects would stay alive
        yield from ((f"{path}:{name}", value) for name, value in variables.items())
        return
    for name, cell in zip(owner.__code__.co_freevars, owner.__closure__ or (), strict=True):
        with suppress(ValueError):  # the variable has no value yet
            yield f"{path}:{name}", cell.cell_contents
    attributes = {"__defaults__": owner.__defaults__, "__kwdefaults__": owner.__kwdefaults__, **vars(owner)}
    yield from ((f"{path}.{name}", value) for name, value in attributes.items() if value is not None)


def _list_slots(owner_class: type) -> tuple[str, ...]:
    slots = owner_class.__dict__.get("__slots__", ())
    if owner_class.__module__ == "builtins":
        return ()
    return (slots,) if isinstance(slots, str) else tuple(slots)

"""Finds the modules that belong to an optimizer, and averaged copies of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class OwnerTree:
    """Modules that belong to an optimizer. Weak references, so that no module stays alive.

    Attributes:
        roots: Root modules that contain a parameter of the optimizer.
        averaged: Modules without a parameter in any optimizer, but with the shapes of a trained module.
    """

    roots: tuple[weakref.ref[nn.Module], ...]
    averaged: tuple[weakref.ref[nn.Module], ...]


@dataclass(frozen=True, slots=True)
class TreeState:
    """Parts of modules, in order.

    Attributes:
        modules: All modules.
        parameters: Parameters. A shared parameter counts more than once.
        buffers: Buffers.
    """

    modules: list[nn.Module]
    parameters: list[torch.Tensor]
    buffers: list[torch.Tensor]


def collect(references: Iterable[weakref.ref[nn.Module]]) -> TreeState:
    """Returns the parts of live modules and their children. Takes about 1 µs a module."""
    modules: list[nn.Module] = []
    parameters: list[torch.Tensor] = []
    buffers: list[torch.Tensor] = []
    stack: list[nn.Module | None] = [reference() for reference in references][::-1]
    seen: set[nn.Module] = set()
    while stack:
        module = stack.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        modules.append(module)
        parameters.extend(tensor for tensor in module._parameters.values() if tensor is not None)
        buffers.extend(tensor for tensor in module._buffers.values() if tensor is not None)
        stack.extend(reversed(module._modules.values()))
    return TreeState(modules, parameters, buffers)


def find_owners(
    modules: list[nn.Module], parameters: list[torch.Tensor], all_trained: Iterable[torch.Tensor]
) -> OwnerTree:
    """Returns the modules of an optimizer with ``parameters``."""
    own, trained = set(map(id, parameters)), set(map(id, all_trained))
    children = {id(child) for module in modules for child in module._modules.values()}
    roots = [module for module in modules if id(module) not in children]
    owners = [root for root in roots if _contains(root, own)]
    shapes = {_get_shapes(module) for root in owners for module in root.modules() if _contains(module, own)}
    averaged = [module for root in roots for module in _find_copies(root, trained, shapes)]
    return OwnerTree(tuple(map(weakref.ref, owners)), tuple(map(weakref.ref, averaged)))


def _find_copies(module: nn.Module, trained: set[int], shapes: set[Shapes]) -> Iterator[nn.Module]:
    """Yields the largest untrained modules with the shapes of a trained one."""
    own_shapes = _get_shapes(module)
    if own_shapes and own_shapes in shapes and not _contains(module, trained):
        yield module
    elif own_shapes:
        for child in module.children():
            yield from _find_copies(child, trained, shapes)


def _contains(module: nn.Module, parameter_ids: set[int]) -> bool:
    return any(id(parameter) in parameter_ids for parameter in module.parameters())


def _get_shapes(module: nn.Module) -> Shapes:
    return tuple(tuple(parameter.shape) for parameter in module.parameters())

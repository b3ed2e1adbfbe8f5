"""Finds the attributes of objects that the module, callbacks, data and optimizers own."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler

from stormproof.data.owned_objects import find_owned_objects, iterate_parts
from stormproof.data.sampler_state import is_plain
from stormproof.user_objects import is_a, read_attributes

EXEMPT_ATTRIBUTE = "not_restored"
"""Class attribute of a module, callback or owned object: names of attributes that training does not depend on."""
_LIBRARIES = {
    "PIL", "cv2", "datasets", "h5py", "lightning", "lightning_fabric", "lightning_utilities", "matplotlib", "mlflow",
    "numpy", "omegaconf", "pandas", "polars", "pyarrow", "pytorch_lightning", "rich", "scipy", "sklearn", "stormproof",
    "tensorboard", "tensorboardX", "tokenizers", "torch", "torchmetrics", "torchvision", "tqdm", "transformers",
    "wandb", *(sys.stdlib_module_names - {"argparse", "types"}),
}  # fmt: skip
"""Packages whose objects change for other reasons, such as caches, progress and logs."""
_CONTAINERS = (dict, list, tuple, deque, partial, MethodType, nn.Module)
_OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
_OPTIMIZER_ATTRIBUTES = {name for name in vars(_OPTIMIZER) if not name.endswith("_hooks")}
_FRAMEWORK_ATTRIBUTES = _OPTIMIZER_ATTRIBUTES | {"step", "_opt_called", "grad_scale", "found_inf", "optimizer"}


def named_owned_attributes(
    roots: Iterable[tuple[str, Any]], visited_ids: set[int], saved_ids: Collection[int] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, root and value of the attributes of the objects that ``roots`` own.

    Includes closure variables, attributes of users' classes, and global variables of the modules of these classes.
    Includes the attributes of a root itself if it is neither a module nor a callback.

    Args:
        roots: Name and object.
        visited_ids: Ids of objects to leave out.
        saved_ids: Ids of the states of optimizers that are in the checkpoint.
    """

    def is_owned(item: object) -> bool:
        if id(item) in visited_ids or is_a(item, (*_CONTAINERS, torch.Tensor, Sampler)):
            return False
        return is_a(item, torch.optim.Optimizer) or not is_library(item)

    def should_descend(item: object) -> bool:
        return id(item) not in visited_ids and (is_a(item, (*_CONTAINERS, Dataset)) or not is_library(item))

    roots, scopes = tuple(roots), dict[type | str, None]()
    for name, root in roots:
        scopes |= dict.fromkeys(_find_scopes(root))
        attributes = dict(_named_own_attributes(name, root))
        if not is_a(root, nn.Module) and not hasattr(root, "state_key"):  # listed by UnsavedAttributes
            yield from ((path, root, value) for path, value in attributes.items() if not path.endswith("_hooks"))
        for path, item in find_owned_objects(attributes, is_owned, should_descend):
            visited_ids.add(id(item))
            scopes |= dict.fromkeys(_find_scopes(item))
            parts = (
                _named_optimizer_states(path, item, saved_ids)
                if is_a(item, torch.optim.Optimizer)
                else _named_own_attributes(path, item)
            )
            for part_path, value in parts:
                if not is_exempt(root, part_path[len(name) + 1 :]):
                    yield part_path, root, value
    for scope in scopes:
        yield from ((path, None, value) for path, value in _named_variables(scope, roots))


def is_exempt(owner: Any, path: str) -> bool:
    """Returns whether ``owner`` or one of its submodules lists the attribute on ``path`` as exempt."""
    for name in re.split(r"[.\[:]", path):
        if name in _exempt_names(owner):
            return True
        owner = dict(owner.named_children()).get(name, owner) if is_a(owner, nn.Module) else owner
    return False


def _exempt_names(owner: Any) -> Collection[str]:
    parents = type(owner).__mro__  # a metaclass may answer every name
    return next((vars(parent)[EXEMPT_ATTRIBUTE] for parent in parents if EXEMPT_ATTRIBUTE in vars(parent)), ())


def is_library(item: object) -> bool:
    """Returns whether an object belongs to the standard library or to a package in ``_LIBRARIES``, by its class."""
    return _is_library_module(item.__module__ if isinstance(item, FunctionType) else type(item).__module__)


def _is_library_module(name: str | None) -> bool:
    return (name or "").partition(".")[0] in _LIBRARIES


def _named_optimizer_states(path: str, optimizer: Any, saved_ids: Collection[int]) -> Iterator[tuple[str, Any]]:
    states = read_attributes(optimizer).get("state", {}).values()
    yield f"{path}.state", [state for state in states if id(state) not in saved_ids]


def _named_variables(scope: type | str, roots: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields path and value of the attributes of a class, or global variables of a module, that no root exempts."""
    name, owner = (scope, sys.modules[scope]) if isinstance(scope, str) else (scope.__qualname__, scope)
    for key, value in tuple(vars(owner).items()):
        is_special = str(key).startswith("__") or "cache" in str(key).lower()
        if not is_special and not any(is_exempt(root, str(key)) for _, root in roots):
            yield f"{name}.{key}", value


def _find_scopes(item: Any) -> Iterator[type | str]:
    """Yields the classes of an object that users define, and the names of their modules."""
    classes = () if isinstance(item, FunctionType) else type(item).__mro__
    yield from (cls for cls in classes if not _is_library_module(cls.__module__))
    for part in (*classes, *((item,) if isinstance(item, FunctionType) else ())):
        if part.__module__ in sys.modules and not _is_library_module(part.__module__):  # None in code of eval
            yield part.__module__


def _named_own_attributes(name: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """Yields path and value of the attributes that may be state."""
    skipped_names = {*_exempt_names(owner), *(() if is_a(owner, nn.Module) else _FRAMEWORK_ATTRIBUTES)}
    is_sampler = name.startswith(("sampler", "batch_sampler")) and (
        is_a(owner, Sampler) or name.rstrip("[0123456789]").endswith("sampler")
    )
    for path, value in iterate_parts(name, owner):
        attribute = path[len(name) + 1 :]
        if attribute not in skipped_names and "cache" not in attribute.lower() and not (is_sampler and is_plain(value)):
            yield path, value  # SamplerState restores plain values of samplers

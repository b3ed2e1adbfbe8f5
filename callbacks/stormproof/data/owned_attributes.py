"""Finds the attributes of objects that the module, callbacks, data and optimizers own."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from numbers import Number
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler

from stormproof.data.owned_objects import find_owned_objects, iterate_parts
from stormproof.data.sampler_state import is_plain
from stormproof.user_objects import is_a, read_attributes

EXEMPT_ATTRIBUTE = "not_restored"
"""Class attribute of a module, callback or owned object: names of attributes that training does not depend on."""
_CONTAINER_LIBRARIES = {"_thread", "argparse", "collections", "queue", "types", "weakref"}
"""Modules of the standard library whose objects contain values of users, such as ``argparse.Namespace``."""
_LIBRARIES = {
    "PIL", "_pytest", "cv2", "datasets", "h5py", "lightning", "lightning_fabric", "lightning_utilities", "matplotlib",
    "mlflow", "numpy", "omegaconf", "pandas", "polars", "pyarrow", "pytorch_lightning", "rich", "scipy", "sklearn",
    "stormproof", "tensorboard", "tensorboardX", "tokenizers", "torch", "torchmetrics", "torchvision", "tqdm",
    "transformers", "wandb", *sys.stdlib_module_names,
}  # fmt: skip
"""Packages whose objects change for other reasons, such as caches, progress and logs."""
_CONTAINERS = (dict, list, tuple, deque, partial, MethodType, nn.Module)
_FRAMEWORK_ATTRIBUTES = {
    "_opt_called", "_warned_capturable_if_run_uncaptured", "_zero_grad_profile_name", "defaults", "found_inf",
    "grad_scale", "optimizer", "param_groups", "state", "step",
}  # fmt: skip
"""Attributes of optimizers and schedules, except hooks."""


def named_owned_attributes(roots: Iterable[tuple[str, Any]], visited_ids: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, root and value of the attributes of the objects that ``roots`` own.

    Includes closure variables. Includes the attributes of a root itself if it is neither a module nor a callback. These
    are followed by attributes of users' classes, global variables of the files of these classes, and the objects in
    them. The same then follows for classes and files that those use, except installed packages. Leaves out objects
    whose ids are in ``visited_ids``.
    """
    roots, scopes, listed_ids = tuple(roots), dict[type | str, None](), set[int]()
    for name, root in roots:
        scopes |= dict.fromkeys(find_scopes(root))
        attributes = dict(_named_own_attributes(name, root))
        listed_ids |= set(map(id, attributes.values()))
        if not is_a(root, nn.Module) and not hasattr(root, "state_key"):  # listed by UnsavedAttributes
            yield from ((path, root, value) for path, value in attributes.items() if not path.endswith("_hooks"))
        for path, value in _search(attributes, visited_ids, scopes):
            if not is_exempt(root, path[len(name) + 1 :]):
                yield path, root, value
    visited_ids |= {id(root) for _, root in roots}
    exempt_names = {name for _, root in roots for name in _exempt_names(root)}
    pending_scopes = [*scopes]
    for pending_scope in pending_scopes:  # new ones are added
        prefix, variables = _named_variables(pending_scope)
        for name in exempt_names & variables.keys():
            del variables[name]
        used_scopes = dict.fromkeys(scope for value in variables.values() for scope in find_scopes(value))
        pending_scopes += [scope for scope in used_scopes if scope not in scopes and not _is_installed(scope)]
        scopes |= used_scopes
        for path, value in (*variables.items(), *_search(variables, visited_ids, {}, is_global=True)):
            if id(value) not in listed_ids or isinstance(value, str | Number):  # another name of an attribute
                yield f"{prefix}.{path}", None, value


def _search(
    attributes: Mapping[str, Any], visited_ids: set[int], scopes: dict[type | str, None], *, is_global: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yields path and value of the attributes of objects in ``attributes``, and adds the scopes of these objects.

    Global objects include modules, whose owners list other ones, and exclude objects of installed packages.
    """

    def is_foreign(item: object) -> bool:
        return is_library(item) or (is_global and _is_installed(type(item)))

    def is_owned(item: object) -> bool:
        if id(item) in visited_ids or is_a(item, (torch.Tensor, Sampler)):
            return False
        if is_a(item, _CONTAINERS):
            return is_global and is_a(item, nn.Module) and not type(item).__module__.startswith("torchmetrics")
        return is_a(item, torch.optim.Optimizer) or not is_foreign(item)

    def should_descend(item: object) -> bool:
        return id(item) not in visited_ids and (is_a(item, (*_CONTAINERS, Dataset)) or not is_foreign(item))

    for path, item in find_owned_objects(attributes, is_owned, should_descend):
        visited_ids.add(id(item))
        scopes |= dict.fromkeys(find_scopes(item))
        if "cache" in path.lower().partition(".")[2]:
            continue
        if is_a(item, torch.optim.Optimizer):
            yield f"{path}.state", [*read_attributes(item).get("state", {}).values()]
            continue
        if is_a(item, nn.Module):
            yield from (*item.named_parameters(path, recurse=False), *item.named_buffers(path, recurse=False))
        parts = _named_own_attributes(path, item)
        yield from (part for part in parts if not (is_a(item, nn.Module) and part[0].endswith("_hooks")))


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


def is_library(item: Any) -> bool:
    """Returns whether an object belongs to a package in ``_LIBRARIES``, by its class or the module of its code."""
    if is_a(item, (partial, MethodType)):
        return is_library(item.func if is_a(item, partial) else item.__self__)
    if isinstance(item, GeneratorType):
        return item.gi_frame is None or _is_library_module(item.gi_frame.f_globals.get("__name__"))
    name = item.__module__ if isinstance(item, FunctionType) else type(item).__module__
    return name not in _CONTAINER_LIBRARIES and _is_library_module(name)


def _is_library_module(name: object) -> bool:
    return str(name).partition(".")[0] in _LIBRARIES


def _named_variables(scope: type | str) -> tuple[str, dict[str, Any]]:
    """Returns the name of a class or a module, and its attributes or global variables."""
    name, owner = (scope, sys.modules[scope]) if isinstance(scope, str) else (scope.__qualname__, scope)
    variables = {str(key): value for key, value in tuple(vars(owner).items())}
    return name, {
        key: value for key, value in variables.items() if not key.startswith("__") and "cache" not in key.lower()
    }


def find_scopes(item: Any) -> Iterator[type | str]:
    """Yields the classes of an object (or a class) that users define, and the names of their modules."""
    is_code = is_a(item, (FunctionType, ModuleType))
    classes = () if is_code else (item if is_a(item, type) else type(item)).__mro__
    yield from (cls for cls in classes if not _is_library_module(cls.__module__))
    for part in (item,) if is_code else classes:
        name = part.__name__ if is_a(part, ModuleType) else part.__module__
        if name in sys.modules and not _is_library_module(name):  # no name in code of eval
            yield name


def _is_installed(scope: type | str) -> bool:
    module = sys.modules.get(scope if isinstance(scope, str) else scope.__module__)
    return "-packages" in str(getattr(module, "__file__", ""))


def _named_own_attributes(name: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """Yields path and value of the attributes that may be state."""
    is_framework = is_a(owner, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler))
    skipped_names = {*_exempt_names(owner), *(_FRAMEWORK_ATTRIBUTES if is_framework else ())}
    is_sampler = name.startswith(("sampler", "batch_sampler")) and (
        is_a(owner, Sampler) or name.rstrip("[0123456789]").endswith("sampler")
    )
    for path, value in iterate_parts(name, owner):
        attribute = path[len(name) + 1 :]
        if attribute not in skipped_names and "cache" not in attribute.lower() and not (is_sampler and is_plain(value)):
            yield path, value  # SamplerState restores plain values of samplers

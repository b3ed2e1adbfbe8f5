"""Finds the attributes of objects that the module, callbacks, data and optimizers own."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Collection, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Sampler

from stormproof.data.owned_objects import find_owned_objects, iterate_parts
from stormproof.data.sampler_state import find_samplers, is_plain, is_stateful
from stormproof.resume import owned_state, snapshot
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
_CONTAINERS = (dict, list, tuple, deque, partial, MethodType, FunctionType, nn.Module)
_OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
_FRAMEWORK_ATTRIBUTES = {*vars(_OPTIMIZER), "step", "_opt_called", "grad_scale", "found_inf", "optimizer"}


def named_owned_attributes(trainer: pl.Trainer) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, root and value of the attributes of owned objects, and of roots without a ``state_dict`` hook.

    Args:
        trainer: Trainer in ``fit``.
    """
    saved_ids = {id(state) for optimizer in trainer.optimizers for state in optimizer.state.values()}
    visited_ids = {id(trainer)}

    def is_owned(item: object) -> bool:
        return is_a(item, torch.optim.Optimizer) or not (
            is_a(item, (*_CONTAINERS, torch.Tensor, Sampler)) or is_library(item)
        )

    def should_descend(item: object) -> bool:
        return id(item) not in visited_ids and (is_a(item, (*_CONTAINERS, Dataset)) or not is_library(item))

    for name, root in _named_roots(trainer):
        attributes = dict(_named_own_attributes(name, root))
        if not is_a(root, nn.Module) and not hasattr(root, "state_key"):  # listed by UnsavedAttributes
            yield from ((path, root, value) for path, value in attributes.items())
        for path, item in find_owned_objects(attributes, is_owned, should_descend):
            if id(item) in visited_ids:
                continue
            visited_ids.add(id(item))
            if is_a(item, torch.optim.Optimizer):
                states = read_attributes(item).get("state", {}).values()
                yield f"{path}.state", root, [state for state in states if id(state) not in saved_ids]
            else:
                for part_path, value in _named_own_attributes(path, item):
                    if not is_exempt(root, part_path[len(name) + 1 :]):
                        yield part_path, root, value


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
    """Returns whether the class of an object belongs to the standard library or to a package in ``_LIBRARIES``."""
    return type(item).__module__.partition(".")[0] in _LIBRARIES


def _named_roots(trainer: pl.Trainer) -> Iterator[tuple[str, Any]]:
    yield from owned_state.find_owners(trainer).items()
    yield from ((f"optimizers[{index}]", optimizer) for index, optimizer in enumerate(trainer.optimizers))
    for index, config in enumerate(trainer.lr_scheduler_configs):
        yield f"lr_schedulers[{index}]", config.scheduler
    for loader in snapshot.train_loaders(trainer):
        names = ("sampler", "batch_sampler", "collate_fn", "dataset")
        parts = {name: getattr(getattr(loader, "wrapped", loader), name, None) for name in names}
        dataset, collate_fn = parts.pop("dataset"), parts.pop("collate_fn")
        if is_a(dataset, Dataset) and not is_a(dataset, IterableDataset) and not is_stateful(dataset):
            yield "dataset", dataset
        for name, root in {**dict(find_samplers(parts, set())), "collate_fn": collate_fn}.items():
            if not is_stateful(root) and not is_library(root):
                yield name, root


def _named_own_attributes(name: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """Yields path and value of the attributes that may be state."""
    skipped_names = {*_exempt_names(owner), *(() if is_a(owner, nn.Module) else _FRAMEWORK_ATTRIBUTES)}
    is_sampler = name.startswith(("sampler", "batch_sampler")) and (is_a(owner, Sampler) or name.endswith("sampler"))
    for path, value in iterate_parts(name, owner):
        attribute = path[len(name) + 1 :]
        if attribute not in skipped_names and "cache" not in attribute.lower() and not (is_sampler and is_plain(value)):
            yield path, value  # SamplerState restores plain values of samplers

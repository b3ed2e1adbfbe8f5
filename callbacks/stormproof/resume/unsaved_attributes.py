"""Finds attributes that change during training but are not in the checkpoint."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from stormproof.data.fingerprint import (
    NONE_FINGERPRINT,
    SavedValues,
    TimedSearch,
    compute_fingerprint,
    find_storage_address,
    has_comparable_part,
    summarize_paths,
    warn_about_failed_search,
)
from stormproof.data.owned_attributes import EXEMPT_ATTRIBUTE, is_exempt, is_library, named_owned_attributes
from stormproof.data.sampler_state import find_samplers, is_stateful
from stormproof.distributed.ddp_buckets import find_communication_hooks
from stormproof.internal_errors import isolate_errors
from stormproof.lightning import internals
from stormproof.resume import owned_state, snapshot
from stormproof.user_objects import is_a

_MAX_PARTS = 2000
"""Maximum parts of a saved state."""


class UnsavedAttributes:
    """Warns once about each attribute that differs between two snapshots and is not in the checkpoint.

    Searches numbers, tensors, arrays and containers of them in the module, its submodules, callbacks, the data module,
    data sets, samplers, optimizers and schedules, and in the objects that these own. Excludes callbacks that derive
    from one of Lightning's, and names in the class attribute ``not_restored``. Ignores objects whose comparison raises
    an error. Searching owned objects has a budget of 0.3 s of CPU time plus 1% of the time. Compares

    - containers by length, the first 1,000 items (keys, values and nested items count) and the last item of a sequence,
    - arrays and tensors by the first 100,000 and the last 1,000 elements,
    - larger tensors also by address and version counter.
    """

    def __init__(self) -> None:
        self._first_fingerprints: dict[str, Any] | None = None  # fingerprints of attributes by path
        self._first_entries: _SavedEntries | None = None  # entries of the first checkpoint
        self._entry_paths: dict[str, _EntryPath] = {}  # where the last checkpoint contained an attribute, by its path
        self._reported_paths: set[str] = set()
        self._search, self._has_failed = TimedSearch(), False

    def observe(self, trainer: pl.Trainer) -> None:
        """Takes the first snapshot, on rank 0. Call it before each batch."""
        if self._first_fingerprints is None and trainer.is_global_zero and not self._has_failed:
            self._observe(trainer)

    @isolate_errors
    def _observe(self, trainer: pl.Trainer) -> None:
        found = self._fingerprint(trainer, _find_saved(trainer, {}))
        self._first_fingerprints = {path: fingerprint for path, _, fingerprint, _ in found}

    def check(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Warns about attributes that changed since the first snapshot and are not in ``checkpoint`` of this step."""
        if self._first_fingerprints is not None and not self._has_failed:
            self._check(trainer, checkpoint, self._first_fingerprints)

    def _disable(self, error: Exception) -> None:
        self._has_failed = True
        warn_about_failed_search(error)

    @isolate_errors
    def _check(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any], first_fingerprints: dict[str, Any]) -> None:
        entries = _SavedEntries(trainer, checkpoint)
        if self._first_entries is None:
            entries.freeze()
            self._first_entries = entries
        changed_paths = []
        for path, owner, fingerprint, is_owned in self._fingerprint(trainer, _find_saved(trainer, checkpoint)):
            first_fingerprint = first_fingerprints.get(path)
            if is_owned and first_fingerprint in {None, NONE_FINGERPRINT}:  # not yet read lazily
                first_fingerprint = first_fingerprints[path] = fingerprint
            if (
                path not in self._reported_paths
                and fingerprint != first_fingerprint
                and has_comparable_part(fingerprint)
            ):
                likely_path = self._entry_paths.get(path)
                entry_path = entries.find(path, owner, fingerprint, first_fingerprint, self._first_entries, likely_path)
                if entry_path is None:
                    changed_paths.append(path)
                else:
                    self._entry_paths[path] = entry_path
        self._reported_paths.update(changed_paths)
        if changed_paths:
            rank_zero_warn(
                "These attributes change during training but are not in the checkpoint: "
                f"{summarize_paths(changed_paths)}. A resume may not be exact. If training depends on them, register "
                "buffers or save them in on_save_checkpoint or state_dict. Otherwise list them in the class attribute "
                f"{EXEMPT_ATTRIBUTE}."
            )

    def _fingerprint(self, trainer: pl.Trainer, saved: SavedValues) -> list[tuple[str, Any, Any, bool]]:
        """Returns path, owner and fingerprint of all attributes, and whether an owned object has the attribute."""
        own = [(path, owner, compute_fingerprint(value, saved)) for path, owner, value in _named_attributes(trainer)]
        owned = self._search.fingerprint(named_owned_attributes(_named_roots(trainer), {id(trainer)}), saved)
        return [(*attribute, False) for attribute in own] + [(*attribute, True) for attribute in owned]


_EntryPath = tuple[Any, ...]
"""Path of an entry in a checkpoint: None for entries that users add, else the key of the owner's state; then keys and
indices."""


class _SavedEntries:
    """Parts of a checkpoint in which an owner can save attributes: its own state and entries that users add."""

    def __init__(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        data_key = type(getattr(trainer, "datamodule", None)).__qualname__
        lightning_keys = {*internals.state_keys(trainer), "hparams_name", "hyper_parameters", "stormproof"} - {data_key}
        self.step = trainer.global_step
        user_entries = {key: value for key, value in checkpoint.items() if key not in lightning_keys}
        extra_states = {name: value for name, value in checkpoint["state_dict"].items() if "_extra_state" in name}
        self._roots: dict[str | None, Any] = {
            **checkpoint["callbacks"],  # by state key
            "module": extra_states,
            "optimization": {
                "lr_schedulers": checkpoint["lr_schedulers"],
                "optimizers": [{**state, "state": None} for state in checkpoint["optimizer_states"]],
            },
            None: user_entries,
        }
        self._optimization_ids = {id(part) for part in owned_state.find_schedules(trainer).values()}
        self._fingerprints: dict[str | None, dict[_EntryPath, Any]] = {}

    def freeze(self) -> None:
        """Computes all fingerprints and releases the checkpoint, whose values may change."""
        for root in self._roots:
            self._fingerprint_root(root)
        self._roots = {}

    def find(
        self,
        attribute_path: str,
        owner: Any,
        fingerprint: Any,
        first_fingerprint: Any,
        first_entries: _SavedEntries,
        likely_path: _EntryPath | None,
    ) -> _EntryPath | None:
        """Returns the path of an entry that contains the attribute, or None.

        The entry must equal ``fingerprint``, and the same entry must equal ``first_fingerprint`` in the first
        checkpoint. An optimizer or a schedule saves an attribute by its name only. ``likely_path`` is compared first.
        """

        def is_equal(path: _EntryPath, entry: Any) -> bool:
            if entry != fingerprint:
                return False
            if first_entries.step > 0 or first_fingerprint is None:
                return True
            return first_entries._fingerprint_root(path[0]).get(path, first_fingerprint) == first_fingerprint

        if likely_path is not None and is_equal(likely_path, self._fingerprint_entry(likely_path)):
            return likely_path
        roots = None, "optimization" if id(owner) in self._optimization_ids else getattr(owner, "state_key", "module")
        name = attribute_path.rpartition(".")[2]
        entries = ((path, entry) for root in roots for path, entry in self._fingerprint_root(root).items())
        matches = (path for path, entry in entries if is_equal(path, entry))
        return next((path for path in matches if path[0] != "optimization" or path[-1] == name), None)

    def _fingerprint_root(self, root: str | None) -> dict[_EntryPath, Any]:
        """Returns the fingerprints of the entries of a root, by path."""
        if root not in self._fingerprints:
            self._fingerprints[root] = dict(_fingerprint_parts(self._roots[root], root)) if root in self._roots else {}
        return self._fingerprints[root]

    def _fingerprint_entry(self, path: _EntryPath) -> Any:
        """Returns the fingerprint of one entry. None if it does not exist."""
        part: Any = self._roots
        for key in path:
            if not isinstance(part, dict | list | tuple):
                return None
            try:
                part = part[key]
            except (LookupError, TypeError):
                return None
        return compute_fingerprint(part)


def _named_attributes(trainer: pl.Trainer) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, owner and value of the attributes to compare."""
    for path, owner in _named_owners(trainer, trainer.lightning_module):
        exempt = {*getattr(type(owner), EXEMPT_ATTRIBUTE, ()), *_find_library_attributes(owner)}
        is_torch_module = type(owner).__module__.startswith("torch.")
        for name, value in vars(owner).items():
            if is_torch_module and (name.startswith("_") or not isinstance(value, int | float)):
                continue
            if name not in exempt:
                yield f"{path}.{name}", owner, value
    owners = owned_state.find_owners(trainer)
    for name, modules in owned_state.find_modules_by_owner(trainer).items():
        owner = owners[name]
        for path, submodule in modules.items():
            exempt = is_exempt(owner, path[len(name) + 1 :])
            if not exempt and not _is_metric(submodule) and not _derives_from_lightning_callback(owner):
                tensors = (*submodule.named_parameters(path), *submodule.named_buffers(path))
                yield from ((name, owner, tensor) for name, tensor in tensors)


def _find_saved(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> SavedValues:
    """Returns the parameters and buffers of the module, and the groups and states of the optimizers."""
    optimizers, saved_states = trainer.optimizers, checkpoint.get("optimizer_states", ())
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    states += [state for saved in saved_states for state in dict(saved.get("state") or {}).values()]
    states = [*{id(state): state for state in states}.values()]  # most are in both
    tensors = (
        *(tensor for group in groups for tensor in group["params"]),
        *(value for state in states if isinstance(state, dict) for value in state.values()),
        *trainer.lightning_module.parameters(),
        *trainer.lightning_module.buffers(),
    )
    containers = (*groups, *states, *(part for item in optimizers for part in (item.param_groups, item.state)))
    addresses = {find_storage_address(tensor) for tensor in tensors if is_a(tensor, torch.Tensor)} - {None}
    return SavedValues(cast("set[int]", addresses), {id(part) for part in containers if isinstance(part, dict | list)})


def _named_roots(trainer: pl.Trainer) -> Iterator[tuple[str, Any]]:
    yield from (*owned_state.find_owners(trainer).items(), *owned_state.find_schedules(trainer).items())
    lightning_callbacks = filter(_derives_from_lightning_callback, internals.callbacks(trainer))
    for index, callback in enumerate(lightning_callbacks):
        yield type(callback).__name__ + (f"[{index}]" if index else ""), callback
    for index, loader in enumerate(snapshot.train_loaders(trainer)):
        suffix = f"[{index}]" if index > 0 else ""
        names = ("sampler", "batch_sampler", "collate_fn", "dataset")
        parts = {name: getattr(getattr(loader, "wrapped", loader), name, None) for name in names}
        dataset, collate_fn = parts.pop("dataset"), parts.pop("collate_fn")
        if is_a(dataset, Dataset) and not is_a(dataset, IterableDataset) and not is_stateful(dataset):
            yield f"dataset{suffix}", dataset
        for name, root in {**dict(find_samplers(parts, set())), "collate_fn": collate_fn}.items():
            if not is_stateful(root) and not is_library(root):
                yield f"{name}{suffix}", root
    hooks = find_communication_hooks(trainer.strategy.model)
    yield from (("communication_hook", hook) for hook, _ in hooks if not is_library(hook))


def _named_owners(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[tuple[str, Any]]:
    for path, child in module.named_modules(prefix="module"):
        if not _is_metric(child):
            yield path, child
    for name, owner in owned_state.find_owners(trainer).items():
        if hasattr(owner, "state_key") and not _derives_from_lightning_callback(owner):
            yield name, owner


def _is_metric(module: nn.Module) -> bool:
    """Returns whether the module derives from a class of torchmetrics.

    ``isinstance`` is slow here: ``Metric`` is abstract, and its check visits every subclass.
    """
    return any(cls.__module__.startswith("torchmetrics.") for cls in type(module).__mro__)


def _derives_from_lightning_callback(owner: Any) -> bool:
    """Returns whether the owner derives from one of Lightning's callbacks, which set their own attributes."""
    classes = [cls for cls in type(owner).__mro__ if cls.__module__.startswith(("pytorch_lightning.", "lightning."))]
    return hasattr(owner, "state_key") and [cls.__name__ for cls in classes] != ["Callback"]


def _find_library_attributes(owner: Any) -> set[str]:
    """Returns the names of the attributes that torch and Lightning set."""
    if not isinstance(owner, nn.Module):
        return set()
    return _list_attributes(next((cls for cls in type(owner).__mro__ if cls.__name__ == "LightningModule"), nn.Module))


@functools.cache
def _list_attributes(base_class: Any) -> set[str]:
    return {*vars(base_class()), "_metric_attributes", "_param_requires_grad_state"}


def _fingerprint_parts(value: Any, root: str | None) -> Iterator[tuple[_EntryPath, Any]]:
    """Yields the fingerprints of a saved value and its parts, by path, breadth first."""
    queue: deque[tuple[_EntryPath, Any]] = deque([((root,), value)])
    for _ in range(_MAX_PARTS):
        if not queue:
            return
        path, part = queue.popleft()
        yield path, compute_fingerprint(part)
        if isinstance(part, dict | list | tuple):
            items = part.items() if isinstance(part, dict) else enumerate(part)
            queue.extend(((*path, key), item) for key, item in islice(items, _MAX_PARTS))

"""Finds attributes that change during training but are not in the checkpoint."""

from __future__ import annotations

import array
import functools
import re
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from itertools import islice
from numbers import Number
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from stormproof.lightning import internals
from stormproof.resume import owned_state
from stormproof.resume.owned_attributes import EXEMPT_ATTRIBUTE, is_exempt, is_library, named_owned_attributes
from stormproof.resume.tensor_digest import digest_tensor, read_bytes

_MAX_ITEMS, _MAX_ELEMENTS, _MAX_PARTS, _MAX_NAMES = 1000, 100_000, 2000, 5
"""Maximum items compared per attribute, elements per tensor, parts of a saved state, and names in a warning."""
_FREE_SECONDS, _TIME_SHARE, _MAX_SECONDS = 0.1, 0.01, 0.5
"""Time to search owned objects: in any case, as a share of the time since the start, and at most per search."""
_INCOMPARABLE = "other"
"""Fingerprint of a value that is neither a number nor a tensor nor a container."""
_NONE = repr(None)
_MAX_LIST_ELEMENTS = 300
"""Arrays and tensors with at most this many elements have the fingerprint of a list with the same elements."""


class UnsavedAttributes:
    """Warns once about each attribute that differs between two snapshots and is not in the checkpoint.

    Searches numbers, tensors, arrays and containers of them in the module, its submodules, callbacks, the data module,
    data sets, samplers, optimizers and schedules, and in the objects that these own. Excludes callbacks that derive
    from one of Lightning's, and names in the class attribute ``not_restored``. Ignores objects whose comparison raises
    an error. Searching owned objects takes at most 1% of the time, after the first 0.1 s. Compares

    - containers by length, the first 1,000 items (keys, values and nested items count) and the last item of a sequence,
    - arrays and tensors by the first 100,000 and the last 1,000 elements,
    - larger tensors also by address and version counter.
    """

    def __init__(self) -> None:
        self._first_fingerprints: dict[str, Any] | None = None  # fingerprints of attributes by path
        self._first_entries: _SavedEntries | None = None  # entries of the first checkpoint
        self._entry_paths: dict[str, _EntryPath] = {}  # where the last checkpoint contained an attribute, by its path
        self._reported_paths: set[str] = set()
        self._start_time, self._nested_seconds = time.monotonic(), 0.0

    def observe(self, trainer: pl.Trainer) -> None:
        """Takes the first snapshot, on rank 0. Call it before each batch."""
        if self._first_fingerprints is None and trainer.is_global_zero:
            fingerprints = {path: _fingerprint(value) for path, _, value in _named_attributes(trainer)}
            self._first_fingerprints = fingerprints | {path: first for path, _, first in self._search_owned(trainer)}

    def check(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Warns about attributes that changed since the first snapshot and are not in ``checkpoint``.

        Args:
            trainer: Trainer in ``fit``.
            checkpoint: Checkpoint taken at the current step. The first call may use the step of the first snapshot.
        """
        if self._first_fingerprints is None:
            return
        entries = _SavedEntries(trainer, checkpoint)
        if self._first_entries is None:
            entries.freeze()
            self._first_entries = entries
        changed_paths = []
        attributes = [(path, owner, _fingerprint(value)) for path, owner, value in _named_attributes(trainer)]
        owned_attributes = self._search_owned(trainer)
        for path, _, fingerprint in owned_attributes:
            if self._first_fingerprints.get(path, _NONE) == _NONE:  # not yet read lazily, for example from a file
                self._first_fingerprints[path] = fingerprint
        for path, owner, fingerprint in attributes + owned_attributes:
            first_fingerprint = self._first_fingerprints.get(path)
            if (
                path not in self._reported_paths
                and fingerprint != first_fingerprint
                and _has_comparable_part(fingerprint)
            ):
                likely_path = self._entry_paths.get(path)
                entry_path = entries.find(owner, fingerprint, first_fingerprint, self._first_entries, likely_path)
                if entry_path is None:
                    changed_paths.append(path)
                else:
                    self._entry_paths[path] = entry_path
        self._reported_paths.update(changed_paths)
        if changed_paths:
            if changed_paths[_MAX_NAMES:]:  # items of one container count once
                changed_paths = [*dict.fromkeys(re.sub(r"\[\d+\].*", "", path) for path in changed_paths)]
            listed_paths = ", ".join(changed_paths[:_MAX_NAMES]) + (
                f" and {len(changed_paths) - _MAX_NAMES} more" if changed_paths[_MAX_NAMES:] else ""
            )
            rank_zero_warn(
                f"These attributes change during training but are not in the checkpoint: {listed_paths}. A resume may "
                "not be exact. If training depends on them, register buffers or save them in on_save_checkpoint or "
                f"state_dict. Otherwise list them in the class attribute {EXEMPT_ATTRIBUTE}."
            )

    def _search_owned(self, trainer: pl.Trainer) -> list[tuple[str, Any, Any]]:
        start, found = time.monotonic(), list[tuple[str, Any, Any]]()
        if self._nested_seconds > _FREE_SECONDS + _TIME_SHARE * (start - self._start_time):
            return []
        for path, owner, value in named_owned_attributes(trainer):
            if time.monotonic() - start > _MAX_SECONDS:
                break
            found.append((path, owner, _fingerprint(value)))
        self._nested_seconds += time.monotonic() - start
        return found


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
        user_entries["lr_schedulers"] = checkpoint["lr_schedulers"]
        user_entries["optimizers"] = [{**state, "state": None} for state in checkpoint["optimizer_states"]]
        extra_states = {name: value for name, value in checkpoint["state_dict"].items() if "_extra_state" in name}
        self._roots: dict[str | None, Any] = {**checkpoint["callbacks"], "": extra_states, None: user_entries}
        self._fingerprints: dict[str | None, dict[_EntryPath, Any]] = {}

    def freeze(self) -> None:
        """Computes all fingerprints and releases the checkpoint, whose values may change."""
        for root in self._roots:
            self._fingerprint_root(root)
        self._roots = {}

    def find(
        self,
        owner: Any,
        fingerprint: Any,
        first_fingerprint: Any,
        first_entries: _SavedEntries,
        likely_path: _EntryPath | None,
    ) -> _EntryPath | None:
        """Returns the path of an entry that contains the attribute, or None.

        The entry must equal ``fingerprint``, and the same entry must equal ``first_fingerprint`` in the first
        checkpoint.

        Args:
            owner: Module or callback.
            fingerprint: Fingerprint of its attribute.
            first_fingerprint: Fingerprint of the attribute in the first snapshot. None if the attribute did not exist.
            first_entries: Entries of the first checkpoint.
            likely_path: Path to compare first.
        """

        def is_equal(path: _EntryPath, entry: Any) -> bool:
            if entry != fingerprint:
                return False
            if first_entries.step > 0 or first_fingerprint is None:
                return True
            return first_entries._fingerprint_root(path[0]).get(path, first_fingerprint) == first_fingerprint

        if likely_path is not None and is_equal(likely_path, self._fingerprint_entry(likely_path)):
            return likely_path
        roots = None, getattr(owner, "state_key", "")
        entries = ((path, entry) for root in roots for path, entry in self._fingerprint_root(root).items())
        return next((path for path, entry in entries if is_equal(path, entry)), None)

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
        return _fingerprint(part, is_saved=True)


def _named_attributes(trainer: pl.Trainer) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, owner and value of the attributes to compare."""
    module = trainer.lightning_module
    optimized_parameters = [
        parameter
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    registered_addresses = {
        _get_data_address(tensor) for tensor in (*module.parameters(), *module.buffers(), *optimized_parameters)
    } - {None}
    for path, owner in _named_owners(trainer, module):
        exempt = {*getattr(type(owner), EXEMPT_ATTRIBUTE, ()), *_find_library_attributes(owner)}
        is_torch_module = type(owner).__module__.startswith("torch.")
        for name, value in vars(owner).items():
            if is_torch_module and (name.startswith("_") or not isinstance(value, int | float)):
                continue
            is_tensor = issubclass(type(value), torch.Tensor)  # a proxy or a mock may have another `__class__`
            is_registered = is_tensor and _get_data_address(cast("torch.Tensor", value)) in registered_addresses
            if name not in exempt and not is_registered:
                yield f"{path}.{name}", owner, value
    owners = owned_state.find_owners(trainer)
    for name, modules in owned_state.find_modules_by_owner(trainer).items():
        owner = owners[name]
        for path, submodule in modules.items():
            exempt = is_exempt(owner, path[len(name) + 1 :])
            if not exempt and not _is_metric(submodule) and not _derives_from_lightning_callback(owner):
                tensors = (*submodule.named_parameters(path), *submodule.named_buffers(path))
                unregistered_tensors = [
                    (name, tensor.detach())
                    for name, tensor in tensors
                    if _get_data_address(tensor) not in registered_addresses
                ]
                yield from ((name, owner, tensor) for name, tensor in unregistered_tensors)


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
        yield path, _fingerprint(part, is_saved=True)
        if isinstance(part, dict | list | tuple):
            items = part.items() if isinstance(part, dict) else enumerate(part)
            queue.extend(((*path, key), item) for key, item in islice(items, _MAX_PARTS))


@dataclass(frozen=True, eq=False)
class _LargeTensorFingerprint:
    """Fingerprint of a large tensor: digest of some elements; address and version counter, None for a saved copy."""

    content: str
    version: tuple[int, int] | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _LargeTensorFingerprint):
            return self.content == other
        if self.version and other.version and self.version[0] == other.version[0]:
            return self.version == other.version
        return self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


def _fingerprint(value: Any, *, is_saved: bool = False) -> Any:
    """Returns a value that differs if a number, tensor, array or container of them differs."""
    try:
        return _compute_fingerprint(value, [_MAX_ITEMS], is_saved)
    except Exception:  # noqa: BLE001 (a user's container may raise any exception)
        return _INCOMPARABLE


def _compute_fingerprint(value: Any, remaining_items: list[int], is_saved: bool) -> Any:
    """Computes a fingerprint. ``remaining_items`` contains the number of items that may still be compared."""
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray | sys.modules["numpy"].generic):
        return _INCOMPARABLE if value.dtype.hasobject else _fingerprint_array(value)
    if value is None or isinstance(value, str | bytes | bytearray | Number | Enum):
        return _fingerprint_scalar(value)
    if isinstance(value, nn.Parameter):
        return _INCOMPARABLE  # the checkpoint contains the parameters that an optimizer changes
    if isinstance(value, torch.Tensor):
        return _fingerprint_tensor(value, is_saved)
    value = _sort_items(value) if isinstance(value, set | frozenset) else value
    if not isinstance(value, dict | list | tuple | deque | array.array):
        return _INCOMPARABLE
    parts = []
    for item in value.items() if isinstance(value, dict) else value:
        if remaining_items[0] <= 0:
            break
        remaining_items[0] -= 1
        part = _compute_fingerprint(item, remaining_items, is_saved)
        parts.append(repr(type(item)) if part is _INCOMPARABLE and not is_library(item) else part)
    last_items = [value[-1]] if isinstance(value, list | tuple | deque) and len(value) > len(parts) else []
    return len(value), *parts, *(_compute_fingerprint(item, [0], is_saved) for item in last_items)


def _sort_items(values: Collection[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _fingerprint_scalar(value: Any) -> str:
    """Returns a fingerprint that is the same for equal numbers of different types."""
    return repr(float(value)) if isinstance(value, int | float) and abs(value) < 2**53 else repr(value)


def _fingerprint_array(values: Any) -> Any:
    """Returns a fingerprint. Tensors, lists and numbers with the same content have the same fingerprint."""
    if values.ndim == 0:
        return _compute_fingerprint(values.item(), [0], False)
    if values.size <= _MAX_LIST_ELEMENTS:
        return _compute_fingerprint(values.tolist(), [_MAX_ITEMS], False)
    flat = values.reshape(-1)
    return _compute_digest(values.shape, values.dtype.name, flat[:_MAX_ELEMENTS], flat[-_MAX_ITEMS:])


def _fingerprint_tensor(tensor: torch.Tensor, is_saved: bool) -> Any:
    if tensor.is_meta or hasattr(tensor, "to_local"):
        return _INCOMPARABLE
    if tensor.layout != torch.strided:
        return digest_tensor(tensor)
    if tensor.ndim == 0:
        return _compute_fingerprint(tensor.item(), [0], is_saved)
    if tensor.numel() <= _MAX_LIST_ELEMENTS:
        return _compute_fingerprint(tensor.tolist(), [_MAX_ITEMS], is_saved)
    flat = tensor.detach().flatten()
    parts = map(read_bytes, (flat[:_MAX_ELEMENTS], flat[-_MAX_ITEMS:]))
    digest = _compute_digest(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), *parts)
    if tensor.numel() <= _MAX_ELEMENTS:
        return digest
    return _LargeTensorFingerprint(digest, None if is_saved else (tensor.data_ptr(), tensor._version))


def _compute_digest(shape: tuple[int, ...], dtype: str, *arrays: Any) -> str:
    digest = blake2b(f"{dtype} {shape}".encode(), digest_size=16)
    for values in arrays:
        digest.update(values.tobytes())
    return digest.hexdigest()


def _get_data_address(tensor: torch.Tensor) -> int | None:
    """Returns the address of the tensor's data, or None if it has no storage (for example, a sparse tensor)."""
    try:
        return tensor.data_ptr() or None
    except RuntimeError:
        return None


def _has_comparable_part(fingerprint: Any) -> bool:
    """Returns whether any part is a number, a tensor or an array."""
    if isinstance(fingerprint, tuple) and fingerprint and isinstance(fingerprint[0], int):
        return len(fingerprint) == 1 or any(map(_has_comparable_part, fingerprint[1:]))
    return fingerprint != _INCOMPARABLE

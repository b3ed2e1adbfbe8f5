"""Fingerprints of attributes, which differ if a number, tensor, array or container of them differs."""

from __future__ import annotations

import array
import ctypes
import re
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from hashlib import blake2b
from numbers import Number
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.data.owned_attributes import is_library
from stormproof.internal_errors import describe_error

_MAX_ITEMS, _MAX_ELEMENTS, _MAX_NAMES = 1000, 100_000, 5
"""Maximum items compared per attribute, elements per tensor, and names in a warning."""
_MAX_LIST_ELEMENTS = 300
"""Arrays and tensors with at most this many elements have the fingerprint of a list with the same elements."""
NONE_FINGERPRINT = repr(None)
_INCOMPARABLE = "other"
"""Fingerprint of a value that is neither a number nor a tensor nor a container."""
_FREE_SECONDS, _TIME_SHARE = 0.3, 0.01
"""CPU time to search owned objects: in any case, and as a share of the time since the start."""
_MIN_SECONDS, _MAX_SECONDS = 0.01, 0.5
"""CPU time of one search."""


@dataclass(frozen=True)
class SavedValues:
    """Values that a resume restores: storage addresses of tensors, and ids of the containers of an optimizer."""

    addresses: Collection[int] = ()
    ids: Collection[int] = ()


class TimedSearch:
    """Computes fingerprints of attributes, with a budget of 0.3 s of CPU time plus 1% of the time since the start."""

    def __init__(self) -> None:
        self._start_time = time.monotonic()
        self._spent_seconds = torch.zeros((), dtype=torch.float64, device="cpu")

    def share_memory(self) -> TimedSearch:
        """Shares the budget with copies of this object in other processes."""
        self._spent_seconds.share_memory_()
        return self

    def fingerprint(self, attributes: Iterable[tuple[str, Any, Any]], saved: SavedValues) -> list[tuple[str, Any, Any]]:
        """Returns path, owner and fingerprint of ``(path, owner, value)``, or of the first ones if time runs out."""
        start, found = time.thread_time(), list[tuple[str, Any, Any]]()
        budget = _FREE_SECONDS + _TIME_SHARE * (time.monotonic() - self._start_time) - float(self._spent_seconds)
        max_seconds = min(max(budget, _MIN_SECONDS), _MAX_SECONDS)
        try:
            for path, owner, value in attributes:
                if time.thread_time() - start > max_seconds:
                    break
                found.append((path, owner, compute_fingerprint(value, saved)))
        except Exception as error:  # noqa: BLE001 (users' objects may raise any exception)
            warn_about_failed_search(error)
        self._spent_seconds += time.thread_time() - start
        return found


def warn_about_failed_search(error: Exception) -> None:
    """Warns that changes may not be named."""
    rank_zero_warn(f"A resume may not be exact: the search for unsaved state {describe_error(error)}.")


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


@dataclass
class _Search:
    saved: SavedValues = field(default_factory=SavedValues)
    is_copy: bool = False  # whether the value is from a checkpoint
    remaining_items: int = _MAX_ITEMS


def compute_fingerprint(value: Any, saved: SavedValues | None = None) -> Any:
    """Returns a value that differs if a number, tensor, array or container of them differs.

    Values in ``saved`` do not count. Without it, ``value`` is a copy from a checkpoint.
    """
    try:
        return _fingerprint_value(value, _Search(is_copy=True) if saved is None else _Search(saved))
    except Exception:  # noqa: BLE001 (a user's container may raise any exception)
        return _INCOMPARABLE


def _fingerprint_value(value: Any, search: _Search) -> Any:
    if id(value) in search.saved.ids:
        return _INCOMPARABLE
    if isinstance(value, np.ndarray | np.generic):
        is_excluded = value.dtype.hasobject or value.__array_interface__["data"][0] in search.saved.addresses
        return _INCOMPARABLE if is_excluded else _fingerprint_array(value)
    value = _unwrap(value)
    if value is None or isinstance(value, str | bytes | bytearray | Number | Enum):
        return _fingerprint_scalar(value)
    if isinstance(value, torch.Tensor):
        return _fingerprint_tensor(value, search)
    if not isinstance(value, dict | list | tuple | deque | array.array):
        return _INCOMPARABLE
    parts = []
    for item in value.items() if isinstance(value, dict) else value:
        if search.remaining_items <= 0:
            break
        search.remaining_items -= 1
        part = _fingerprint_value(item, search)
        parts.append(repr(type(item)) if part is _INCOMPARABLE and not is_library(item) else part)
    last_items = [value[-1]] if isinstance(value, list | tuple | deque) and len(value) > len(parts) else []
    return len(value), *parts, *(_fingerprint_value(item, replace(search, remaining_items=0)) for item in last_items)


def _unwrap(value: Any) -> Any:
    """Returns the content of shared memory and ctypes, the arguments of a partial function, and the items of a set."""
    if type(value).__module__ == "multiprocessing.sharedctypes":
        value = value.get_obj()
    if isinstance(value, ctypes._SimpleCData | ctypes.Array):  # noqa: SLF001 (ctypes has no public name)
        return value[:_MAX_ITEMS] if isinstance(value, ctypes.Array) else value.value
    if isinstance(value, partial):
        return value.args, value.keywords
    return _sort_items(value) if isinstance(value, set | frozenset) else value


def _sort_items(values: Collection[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _fingerprint_scalar(value: Any) -> str:
    """Returns a fingerprint that is the same for equal numbers of different types."""
    if isinstance(value, str | bytes | bytearray) and len(value) > _MAX_ELEMENTS:
        return repr((len(value), value[:_MAX_ELEMENTS], value[-_MAX_ITEMS:]))
    return repr(float(value)) if isinstance(value, int | float) and abs(value) < 2**53 else repr(value)


def _fingerprint_array(values: Any) -> Any:
    """Returns a fingerprint. Tensors, lists and numbers with the same content have the same fingerprint."""
    if values.ndim == 0:
        return _fingerprint_scalar(values.item())
    if values.size <= _MAX_LIST_ELEMENTS:
        return _fingerprint_value(values.tolist(), _Search())
    flat = values.reshape(-1)
    return _compute_digest(values.shape, values.dtype.name, flat[:_MAX_ELEMENTS], flat[-_MAX_ITEMS:])


def _fingerprint_tensor(tensor: torch.Tensor, search: _Search) -> Any:
    if tensor.is_meta or hasattr(tensor, "to_local") or find_storage_address(tensor) in search.saved.addresses:
        return _INCOMPARABLE
    if tensor.layout != torch.strided:
        return digest_tensor(tensor)
    if tensor.ndim == 0:
        return _fingerprint_scalar(tensor.item())
    if tensor.numel() <= _MAX_LIST_ELEMENTS:
        return _fingerprint_value(tensor.tolist(), _Search())
    flat = tensor.detach().flatten()
    parts = map(read_bytes, (flat[:_MAX_ELEMENTS], flat[-_MAX_ITEMS:]))
    digest = _compute_digest(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), *parts)
    if tensor.numel() <= _MAX_ELEMENTS:
        return digest
    version = None if search.is_copy else (tensor.data_ptr(), tensor._version)  # noqa: SLF001
    return _LargeTensorFingerprint(digest, version)


def find_storage_address(tensor: torch.Tensor) -> int | None:
    """Returns the address of the tensor's storage. None without storage, as for a sparse tensor."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def _compute_digest(shape: tuple[int, ...], dtype: str, *arrays: Any) -> str:
    digest = blake2b(f"{dtype} {shape}".encode(), digest_size=16)
    for values in arrays:
        digest.update(values.tobytes())
    return digest.hexdigest()


def has_comparable_part(fingerprint: Any) -> bool:
    """Returns whether any part is a number, a tensor or an array."""
    if isinstance(fingerprint, tuple) and fingerprint and isinstance(fingerprint[0], int):
        return len(fingerprint) == 1 or any(map(has_comparable_part, fingerprint[1:]))
    return fingerprint != _INCOMPARABLE


def summarize_paths(paths: Sequence[str]) -> str:
    """Returns the first paths of changed attributes. Items of one container count once if there are many."""
    names = (
        [*dict.fromkeys(re.sub(r"(\.\w+)\[\d+\].*", r"\1", path) for path in paths)] if paths[_MAX_NAMES:] else paths
    )
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if names[_MAX_NAMES:] else "")


def digest_tensor(tensor: torch.Tensor) -> str:
    """Returns a digest of shape, dtype and content of a dense or sparse tensor.

    Example:
        >>> digest_tensor(torch.zeros(2)) == digest_tensor(torch.zeros(2))
        True
        >>> digest_tensor(torch.zeros(2)) == digest_tensor(torch.zeros(2, 1))
        False
    """
    digest = blake2b(
        f"{tensor.dtype} {() if tensor.is_nested else tuple(tensor.shape)} {tensor.layout}".encode(), digest_size=16
    )
    for part in _list_dense_parts(tensor.detach()):
        digest.update(read_bytes(part))
    return digest.hexdigest()


def read_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the content of a dense tensor. Does not copy a contiguous tensor in host memory.

    ``Tensor.numpy`` would make ``resize_`` of the tensor raise an error, which observers for quantization call.
    """
    content = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    return np.from_dlpack(content).data


def _list_dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.is_meta:
        return []
    if tensor.is_nested:
        return [part for item in tensor.unbind() for part in _list_dense_parts(item)]
    if tensor.layout == torch.strided:
        return [tensor]
    tensor = tensor.to_sparse_coo().coalesce()
    return [tensor.indices(), tensor.values()]

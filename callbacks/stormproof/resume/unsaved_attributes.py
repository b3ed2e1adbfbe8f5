"""Finds attributes that change during training but are not in the checkpoint."""

from __future__ import annotations

import array
import functools
import re
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from itertools import islice
from numbers import Number
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from stormproof.lightning import internals
from stormproof.resume import owned_state
from stormproof.resume.tensor_digest import tensor_digest

EXEMPT_ATTRIBUTE = "not_restored"
"""Class attribute of a module or callback: names of attributes that training does not depend on."""
_ITEMS, _ELEMENTS, _PARTS, _NAMED = 1000, 100_000, 2000, 5
"""Maximum items compared per attribute, elements per tensor, parts of a saved state, and names in a warning."""
_OTHER = "other"
"""Fingerprint of what is neither a number nor a tensor nor a container."""
_SMALL = 300
"""Arrays and tensors with at most so many elements equal a list with the same elements."""


class UnsavedAttributes:
    """Warns once about each attribute that differs between two snapshots and is not in the checkpoint.

    Searches numbers, tensors, arrays and containers of them in the module, its submodules and callbacks. Excludes
    callbacks that derive from one of Lightning's, and names in the class attribute ``not_restored``. Compares a
    container by its length, its first 1,000 items (keys, values and nested items count) and, for sequences, the last
    one; an array or tensor by its first 100,000 elements and the last 1,000; a larger tensor also by its address and
    version counter. Ignores objects whose comparison raises an error.
    """

    def __init__(self) -> None:
        self._first: dict[str, Any] | None = None  # fingerprints of attributes by path
        self._first_saved: _Saved | None = None  # entries of the first checkpoint
        self._reported: set[str] = set()

    def observe(self, trainer: pl.Trainer) -> None:
        """Takes the first snapshot, on rank 0. Call it before each batch."""
        if self._first is None and trainer.is_global_zero:
            self._first = {path: _fingerprint(value) for path, _, value in _attributes(trainer)}

    def check(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Warns about attributes that changed since the first snapshot and are not in ``checkpoint``.

        Args:
            trainer: Trainer in ``fit``.
            checkpoint: Checkpoint taken at the current step. The first call may use the step of the first snapshot.
        """
        if self._first is None:
            return
        if self._first_saved is None:
            self._first_saved = _Saved(trainer, checkpoint)
        candidates = []
        for path, owner, value in _attributes(trainer):
            now, first = _fingerprint(value), self._first.get(path)
            if path not in self._reported and now != first and _has_comparable_part(now):
                candidates.append((path, owner, now, first))
        if not candidates:
            return
        saved = _Saved(trainer, checkpoint)
        first_saved = self._first_saved
        changed = [path for path, owner, now, first in candidates if not saved.contains(owner, now, first, first_saved)]
        self._reported.update(changed)
        if changed:
            named = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if changed[_NAMED:] else "")
            rank_zero_warn(
                f"These attributes change during training but are not in the checkpoint: {named}. A resume may not be "
                "exact. If training depends on them, register buffers or save them in on_save_checkpoint or "
                f"state_dict. Otherwise list them in the class attribute {EXEMPT_ATTRIBUTE}."
            )


class _Saved:
    """The parts of a checkpoint in which an owner can save attributes: its own state, and entries that users add."""

    def __init__(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        lightning_keys = {*internals.state_keys(trainer), "hparams_name", "hyper_parameters", "stormproof"}
        self.step = trainer.global_step
        users = {key: value for key, value in checkpoint.items() if key not in lightning_keys}
        states = checkpoint["callbacks"]
        extra = {name: value for name, value in checkpoint["state_dict"].items() if "_extra_state" in name}
        self._parts = {key: dict(_parts(state, "own")) for key, state in {**states, "": extra}.items()}
        self._user_entries = dict(_parts(users, "user"))

    def contains(self, owner: Any, now: Any, first: Any, first_saved: _Saved) -> bool:
        """Returns whether the checkpoint contains the attribute.

        Some entry must equal ``now``, and the same entry must equal ``first`` in the first checkpoint.

        Args:
            owner: Module or callback.
            now: Fingerprint of its attribute.
            first: Fingerprint of the attribute in the first snapshot. None if the attribute did not exist.
            first_saved: Entries of the first checkpoint.
        """
        key = getattr(owner, "state_key", "")
        parts, first_parts = ({**saved._user_entries, **saved._parts.get(key, {})} for saved in (self, first_saved))
        places = [place for place, part in parts.items() if part == now]
        if first_saved.step == 0 and first is not None:
            places = [place for place in places if first_parts.get(place, first) == first]
        return bool(places)


def _attributes(trainer: pl.Trainer) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, owner and value of the attributes to compare."""
    module = trainer.lightning_module
    optimized = [
        each for optimizer in trainer.optimizers for group in optimizer.param_groups for each in group["params"]
    ]
    registered = {_address(tensor) for tensor in (*module.parameters(), *module.buffers(), *optimized)} - {None}
    for path, owner in _owners(trainer, module):
        exempt = {*getattr(type(owner), EXEMPT_ATTRIBUTE, ()), *_names_of_libraries(owner)}
        is_torch_module = type(owner).__module__.startswith("torch.")
        for name, value in vars(owner).items():
            if is_torch_module and (name.startswith("_") or not isinstance(value, int | float)):
                continue
            is_registered = isinstance(value, torch.Tensor) and _address(value) in registered
            if name not in exempt and not is_registered:
                yield f"{path}.{name}", owner, value
    owners = owned_state.owners(trainer)
    for name, modules in owned_state.find_modules_of_owners(trainer).items():
        owner = owners[name]
        for path, other in modules.items():
            exempt = _is_exempt(owner, path[len(name) + 1 :])
            if not exempt and not _is_metric(other) and not _derives_from_lightning_callback(owner):
                tensors = (*other.named_parameters(path), *other.named_buffers(path))
                others = [(name, tensor.detach()) for name, tensor in tensors if _address(tensor) not in registered]
                yield from ((name, owner, tensor) for name, tensor in others)


def _owners(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[tuple[str, Any]]:
    for path, child in module.named_modules(prefix="module"):
        if not _is_metric(child):
            yield path, child
    for name, owner in owned_state.owners(trainer).items():
        if hasattr(owner, "state_key") and not _derives_from_lightning_callback(owner):
            yield name, owner


def _is_exempt(owner: Any, path: str) -> bool:
    """Returns whether ``owner`` or one of its submodules lists the attribute on ``path`` as exempt."""
    for name in re.split(r"[.\[:]", path):
        if name in getattr(type(owner), EXEMPT_ATTRIBUTE, ()):
            return True
        owner = dict(owner.named_children()).get(name) if isinstance(owner, nn.Module) else None
    return False


def _is_metric(module: nn.Module) -> bool:
    return isinstance(module, Metric) or type(module).__module__.startswith("torchmetrics.")


def _derives_from_lightning_callback(owner: Any) -> bool:
    """Returns whether it derives from one of Lightning's callbacks, which keeps attributes of its own."""
    kinds = [kind for kind in type(owner).__mro__ if kind.__module__.startswith(("pytorch_lightning.", "lightning."))]
    return hasattr(owner, "state_key") and [kind.__name__ for kind in kinds] != ["Callback"]


def _names_of_libraries(owner: Any) -> set[str]:
    """Returns the names of the attributes that torch and Lightning set."""
    if not isinstance(owner, nn.Module):
        return set()
    return _names_of(next((kind for kind in type(owner).__mro__ if kind.__name__ == "LightningModule"), nn.Module))


@functools.cache
def _names_of(base: Any) -> set[str]:
    return {*vars(base()), "_metric_attributes", "_param_requires_grad_state"}


def _parts(value: Any, root: str) -> Iterator[tuple[str, Any]]:
    """Yields the fingerprints of a saved value and its parts, by path, breadth first."""
    waiting = deque([(root, value)])
    for _ in range(_PARTS):
        if not waiting:
            return
        path, part = waiting.popleft()
        yield path, _fingerprint(part, is_saved=True)
        if isinstance(part, dict | list | tuple):
            items = part.items() if isinstance(part, dict) else enumerate(part)
            waiting.extend((f"{path}/{key}", item) for key, item in islice(items, _PARTS))


@dataclass(frozen=True, eq=False)
class _Large:
    """Fingerprint of a large tensor: digest of some elements; address and version counter, None for a saved copy."""

    content: str
    version: tuple[int, int] | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Large):
            return self.content == other
        if self.version and other.version and self.version[0] == other.version[0]:
            return self.version == other.version
        return self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


def _fingerprint(value: Any, *, is_saved: bool = False) -> Any:
    """Returns a value that differs if a number, tensor, array or container of them differs."""
    try:
        return _fingerprint_of(value, [_ITEMS], is_saved)
    except Exception:  # noqa: BLE001 (a user's container may raise any exception)
        return _OTHER


def _fingerprint_of(value: Any, left: list[int], is_saved: bool) -> Any:
    """``left`` is the number of items that may still be compared."""
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray | sys.modules["numpy"].generic):
        return _OTHER if value.dtype.hasobject else _fingerprint_of_array(value)
    if value is None or isinstance(value, str | bytes | bytearray | Number | Enum):
        return _fingerprint_of_scalar(value)
    if isinstance(value, nn.Parameter):
        return _OTHER  # one that an optimizer changes is in the checkpoint
    if isinstance(value, torch.Tensor):
        return _fingerprint_of_tensor(value, is_saved)
    value = _in_order(value) if isinstance(value, set | frozenset) else value
    if not isinstance(value, dict | list | tuple | deque | array.array):
        return _OTHER
    parts = []
    for item in value.items() if isinstance(value, dict) else value:
        if left[0] <= 0:
            break
        left[0] -= 1
        parts.append(_fingerprint_of(item, left, is_saved))
    last = [value[-1]] if isinstance(value, list | tuple | deque) and len(value) > len(parts) else []
    return len(value), *parts, *(_fingerprint_of(item, [0], is_saved) for item in last)


def _in_order(values: Collection[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _fingerprint_of_scalar(value: Any) -> str:
    """Is the same for equal numbers of different types."""
    return repr(float(value)) if isinstance(value, int | float) and abs(value) < 2**53 else repr(value)


def _fingerprint_of_array(values: Any) -> Any:
    """Equals the fingerprint of a tensor, list or number with the same content."""
    if values.ndim == 0:
        return _fingerprint_of(values.item(), [0], False)
    if values.size <= _SMALL:
        return _fingerprint_of(values.tolist(), [_ITEMS], False)
    flat = values.reshape(-1)
    return _digest_of(values.shape, values.dtype.name, flat[:_ELEMENTS], flat[-_ITEMS:])


def _fingerprint_of_tensor(tensor: torch.Tensor, is_saved: bool) -> Any:
    if tensor.is_meta or hasattr(tensor, "to_local"):
        return _OTHER
    if tensor.layout != torch.strided:
        return tensor_digest(tensor)
    if tensor.ndim == 0:
        return _fingerprint_of(tensor.item(), [0], is_saved)
    if tensor.numel() <= _SMALL:
        return _fingerprint_of(tensor.tolist(), [_ITEMS], is_saved)
    flat = tensor.detach().flatten()
    host = [part.cpu().resolve_conj().resolve_neg().contiguous() for part in (flat[:_ELEMENTS], flat[-_ITEMS:])]
    content = [part.view(torch.uint8).numpy() for part in host]
    digest = _digest_of(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), *content)
    if tensor.numel() <= _ELEMENTS:
        return digest
    return _Large(digest, None if is_saved else (tensor.data_ptr(), tensor._version))


def _digest_of(shape: tuple[int, ...], dtype: str, *arrays: Any) -> str:
    digest = blake2b(f"{dtype} {shape}".encode(), digest_size=16)
    for part in arrays:
        digest.update(part.tobytes())
    return digest.hexdigest()


def _address(tensor: torch.Tensor) -> int | None:
    """Returns the address of the tensor's data, or None if it has no storage (for example, a sparse tensor)."""
    try:
        return tensor.data_ptr() or None
    except RuntimeError:
        return None


def _has_comparable_part(fingerprint: Any) -> bool:
    """Returns whether any part is a number, a tensor or an array."""
    if isinstance(fingerprint, tuple) and fingerprint and isinstance(fingerprint[0], int):
        return len(fingerprint) == 1 or any(map(_has_comparable_part, fingerprint[1:]))
    return fingerprint != _OTHER

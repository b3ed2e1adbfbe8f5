"""Finds attributes that change during training but are not in the checkpoint."""

from __future__ import annotations

import functools
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from stormproof import lightning_internals, owned_state
from stormproof.tensor_digest import tensor_digest

EXEMPT_ATTRIBUTE = "not_restored"
"""Class attribute of a module or callback: names of attributes that training does not depend on."""
_ITEMS, _ELEMENTS, _PARTS, _NAMED = 1000, 100_000, 2000, 5
"""Maximum items compared per attribute, elements per tensor, parts of a saved state, and names in a warning."""
_OTHER = "other"
"""Fingerprint of what is neither a number nor a tensor nor a container."""


class UnsavedAttributes:
    """Warns once about each attribute that differs between two snapshots and is not in the checkpoint.

    Searches numbers, tensors, arrays and containers of them in the module, its submodules and callbacks. Excludes
    callbacks that derive from one of Lightning's, and names in the class attribute ``not_restored``. Compares a
    container by its length, its first 1,000 items and, for sequences, the last one; a tensor above 100,000 elements by
    its address and version counter; an array by its first 100,000 elements and the last 1,000. Ignores objects whose
    comparison raises an error.
    """

    def __init__(self) -> None:
        self._first: dict[str, Any] | None = None  # fingerprints of attributes by path
        self._first_saved: _Saved | None = None  # of the same moment
        self._reported: set[str] = set()

    def observe(self, trainer: pl.Trainer) -> None:
        """Takes the first snapshot, on rank 0. Call it before each batch."""
        if self._first is None and trainer.is_global_zero:
            self._first = {path: _fingerprint(value) for path, _, value in _attributes(trainer)}

    def check(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Warns about attributes that changed since the first snapshot and are not in ``checkpoint``.

        Args:
            trainer: Trainer in ``fit``.
            checkpoint: Checkpoint of the same moment. The first one may be of the moment of the first snapshot.
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
        before = self._first_saved
        changed = [path for path, owner, now, first in candidates if not saved.contains(owner, now, first, before)]
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
        lightning_keys = {*lightning_internals.state_keys(trainer), "hparams_name", "hyper_parameters", "stormproof"}
        self.step = trainer.global_step
        users = {key: value for key, value in checkpoint.items() if key not in lightning_keys}
        states = checkpoint["callbacks"]
        extra = {name: value for name, value in checkpoint["state_dict"].items() if "_extra_state" in name}
        self._parts = {key: dict(_parts(state)) for key, state in {**states, "": extra}.items()}
        self._of_users = dict(_parts(users))

    def contains(self, owner: Any, now: Any, first: Any, before: _Saved) -> bool:
        """Returns whether a part has this fingerprint, and had that of the first snapshot if it was saved then too.

        Args:
            owner: Module or callback.
            now: Fingerprint of its attribute.
            first: Fingerprint of the attribute in the first snapshot. None if the attribute did not exist.
            before: The same of the first checkpoint.
        """
        key = getattr(owner, "state_key", "")
        parts, parts_before = ({**each._of_users, **each._parts.get(key, {})} for each in (self, before))
        places = [place for place, part in parts.items() if part == now]
        if before.step == 0 and first is not None:
            places = [place for place in places if parts_before.get(place, first) == first]
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
        is_torchs = type(owner).__module__.startswith("torch.")
        for name, value in vars(owner).items():
            if is_torchs and (name.startswith("_") or not isinstance(value, int | float)):
                continue
            is_registered = isinstance(value, torch.Tensor) and _address(value) in registered
            if name not in exempt and not is_registered:
                yield f"{path}.{name}", owner, value
    owners = owned_state.owners(trainer)
    for name, modules in owned_state.find_modules_of_owners(trainer).items():
        owner = owners[name]
        for path, other in modules.items():
            attribute = re.split(r"[.\[]", path[len(name) + 1 :])[0]
            exempt = attribute in getattr(type(owner), EXEMPT_ATTRIBUTE, ())
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


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the fingerprints of a value and its parts, by path, breadth first."""
    waiting = deque([("", value)])
    for _ in range(_PARTS):
        if not waiting:
            return
        path, part = waiting.popleft()
        yield path, _fingerprint(part)
        if isinstance(part, dict | list | tuple):
            items = part.items() if isinstance(part, dict) else enumerate(part)
            waiting.extend((f"{path}/{key}", item) for key, item in islice(items, _PARTS))


def _fingerprint(value: Any) -> Any:
    """Returns a value that differs if a number, tensor, array or container of them differs."""
    try:
        return _fingerprint_of(value, [_ITEMS])
    except Exception:  # noqa: BLE001 (a container of a user may raise whatever it wants)
        return _OTHER


def _fingerprint_of(value: Any, left: list[int]) -> Any:
    """``left`` is the number of items that may still be compared."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, nn.Parameter):
        return _OTHER  # one that an optimizer changes is in the checkpoint
    if isinstance(value, torch.Tensor):
        return _fingerprint_of_tensor(value)
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray | sys.modules["numpy"].generic):
        return _OTHER if value.dtype.hasobject else _fingerprint_of_array(value)
    if not isinstance(value, dict | list | tuple | set | deque):
        return _OTHER
    parts = []
    for item in value.items() if isinstance(value, dict) else value:
        if left[0] <= 0:
            break
        left[0] -= 1
        parts.append(_fingerprint_of(item, left))
    last = [value[-1]] if isinstance(value, list | tuple | deque) and len(value) > len(parts) else []
    return len(value), *parts, *(_fingerprint_of(item, [0]) for item in last)


def _fingerprint_of_array(array: Any) -> Any:
    flat = array.reshape(-1)
    content = flat[:_ELEMENTS].tobytes() + flat[-_ITEMS:].tobytes()
    return array.shape, str(array.dtype), blake2b(content, digest_size=16).hexdigest()


def _fingerprint_of_tensor(tensor: torch.Tensor) -> Any:
    if tensor.is_meta or hasattr(tensor, "to_local"):
        return _OTHER
    if tensor.layout == torch.strided and tensor.numel() > _ELEMENTS:
        return tuple(tensor.shape), tensor.data_ptr(), tensor._version
    return tensor_digest(tensor)


def _address(tensor: torch.Tensor) -> int | None:
    """Returns where the data are. None for a tensor without storage, such as a sparse one."""
    try:
        return tensor.data_ptr() or None
    except RuntimeError:
        return None


def _has_comparable_part(fingerprint: Any) -> bool:
    """Returns whether any part is a number, a tensor or an array."""
    if isinstance(fingerprint, tuple) and fingerprint and isinstance(fingerprint[0], int):
        return len(fingerprint) == 1 or any(map(_has_comparable_part, fingerprint[1:]))
    return fingerprint != _OTHER

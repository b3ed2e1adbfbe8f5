"""Saves training state that ``torch.load(weights_only=True)`` refuses, such as a deque in the state of an optimizer.

The values are pickled without their tensors. They are loaded without executing foreign code, as in
https://docs.python.org/3/library/pickle.html#restricting-globals.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.loadable import PLAIN_TYPES, is_loadable, is_plain_value, make_refused_error, type_name
from stormproof.distributed.collectives import run_on_rank_zero
from stormproof.internal_errors import with_plain_tensors
from stormproof.lightning import internals
from stormproof.lightning.layout import Layout
from stormproof.resume.snapshot_state import CHECKPOINT_KEY
from stormproof.units.transforms import has_values, plain_values

_LOADED_NAMES = frozenset({
    "array.array", "array._array_reconstructor", "builtins.bool", "builtins.bytearray", "builtins.complex",
    "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list", "builtins.object",
    "builtins.range", "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple", "collections.Counter",
    "collections.OrderedDict", "collections.defaultdict", "collections.deque", "copyreg._reconstructor",
    "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "decimal.Decimal", "fractions.Fraction", "numpy.dtype", "numpy.ndarray", "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "random.Random", f"{__name__}._restore_nested", f"{__name__}._restore_subclass", "torch.Generator", "torch.Size",
    "torch.device", "types.SimpleNamespace",
})  # fmt: skip
"""Types that contain data only, and functions that rebuild them."""
_Path = tuple[Any, ...]
_REMOVED = object()


class RefusedState:
    """Moves refused values of a checkpoint's training state to ``checkpoint["stormproof"]["refused"]``, pickled."""

    def __init__(self) -> None:
        self._is_first = True
        self._reported_paths: set[_Path] = set()

    def extract(self, trainer: pl.Trainer, layout: Layout, checkpoint: dict[str, Any]) -> None:
        """Replaces entries of ``checkpoint``, and leaves their values unchanged. All ranks call it together.

        A value that cannot be restored is left out with a warning, because training must not end.

        Raises:
            NotResumableError: If a value of the first checkpoint cannot be restored.
        """
        state = {key: checkpoint.pop(key) for key in {*internals.state_keys(trainer), CHECKPOINT_KEY} & {*checkpoint}}
        refused: dict[_Path, Any] = {}
        checkpoint.update(_split(state, (), refused))
        saved, lost = _pickle(trainer, layout, refused), dict[_Path, Any]()
        if refused and saved is None:
            lost = {path: value for path, value in refused.items() if _pickle(trainer, layout, {path: value}) is None}
            saved = _pickle(trainer, layout, {path: value for path, value in refused.items() if path not in lost})
        run_on_rank_zero(lambda: self._report(lost))
        self._is_first = False
        if refused:
            checkpoint[CHECKPOINT_KEY] = {**checkpoint[CHECKPOINT_KEY], "refused": saved}

    def _report(self, lost: dict[_Path, Any]) -> None:
        paths = lost.keys() - self._reported_paths
        self._reported_paths.update(paths)
        names = sorted(f"{'/'.join(map(str, path))}: {_describe_kind(lost[path])}" for path in paths)
        if names and self._is_first:
            raise make_refused_error(names)
        if names:
            rank_zero_warn(
                f"A resume will not be exact: checkpoints omit {', '.join(names)}, which cannot be restored. Convert "
                "these values to tensors or plain Python values."
            )


def restore(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Puts the values of :class:`RefusedState` back into a loaded checkpoint."""
    saved = checkpoint.get(CHECKPOINT_KEY, {}).pop("refused", None)
    for path, value in {} if saved is None else _Unpickler(saved, trainer.strategy.root_device).load().items():
        functools.reduce(lambda container, key: container[key], path[:-1], checkpoint)[path[-1]] = value


def _split(value: Any, path: _Path, refused: dict[_Path, Any]) -> Any:
    """Returns ``value`` without the refused values, which are added to ``refused``. A list has None in their place."""
    kind = type(value)
    is_plain = kind in {list, tuple, dict, OrderedDict, set} and {*map(type, value)} <= PLAIN_TYPES
    if kind in {list, tuple, dict, OrderedDict} and (is_plain or kind in {list, tuple}):
        items = value if isinstance(value, dict) else {} if is_plain else dict(enumerate(value))
        kept = {key: _split(item, (*path, key), refused) for key, item in items.items()}
        if all(kept[key] is item for key, item in items.items()):
            return value
        if not isinstance(value, dict):
            parts: list[Any] = [None if item is _REMOVED else item for item in kept.values()]
            return parts if kind is list else tuple(parts)
        copied = copy.copy(value)  # with the _metadata of a state_dict
        copied.clear()
        copied.update((key, item) for key, item in kept.items() if item is not _REMOVED)
        return copied
    if is_plain or is_plain_value(value) or _is_accepted(value):
        return value
    is_subclass = _is_subclass(value)
    if not is_subclass or path[0] == "optimizer_states":  # a buffer keeps its class when it is loaded
        refused[path] = value
    return plain_values(value) if is_subclass else _REMOVED


def _is_subclass(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and type(value) is not torch.Tensor and has_values(value)


def _is_accepted(value: Any) -> bool:
    """Returns whether a value is a NumPy number, which becomes a Python number, a shard, or loadable by torch."""
    is_shard = isinstance(value, torch.Tensor) and hasattr(value, "to_local")
    return is_shard or isinstance(value, np.generic | torch.dtype) or (not _is_nested(value) and is_loadable(value))


def _is_nested(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_nested


def _describe_kind(value: Any) -> str:
    nested_kind = "nested tensor (of a buffer: pass persistent=False to register_buffer)"
    return nested_kind if _is_nested(value) else type_name(value)


def _pickle(trainer: pl.Trainer, layout: Layout, values: dict[_Path, Any]) -> dict[str, Any] | None:
    """Returns a tensor of bytes and the tensors of ``values``. None if they could not be restored."""
    if layout.is_sharded and {path[0] for path in values} & {"state_dict", "optimizer_states"}:
        return None  # read before any hook
    if any(path[0] in {"state_dict", "current_model_state"} and _is_nested(value) for path, value in values.items()):
        return None  # Module.load_state_dict refuses it
    file, tensors = io.BytesIO(), list[torch.Tensor]()
    try:
        _Pickler(file, tensors).dump(values)
        saved = {"bytes": torch.frombuffer(file.getbuffer(), dtype=torch.uint8), "tensors": tensors}
        _Unpickler(saved, trainer.strategy.root_device).load()
    except Exception:  # noqa: BLE001 (users' classes may raise any exception)
        return None
    return saved


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors, self._indices = tensors, dict[int, int]()

    def persistent_id(self, obj: Any) -> tuple[int, str] | None:
        if type(obj) is not torch.Tensor or obj.is_nested:
            return None
        index = self._indices.setdefault(id(obj), len(self._tensors))
        self._tensors += [obj] if index == len(self._tensors) else []
        return index, obj.device.type

    @with_plain_tensors
    def reducer_override(self, obj: Any) -> Any:
        if _is_nested(obj):
            is_jagged = obj.layout is torch.jagged
            parts = (obj.values(), obj.offsets(), obj.lengths(), obj._ragged_idx) if is_jagged else obj.unbind()  # noqa: SLF001 (has no public name)
            return _restore_nested, (parts, is_jagged, obj.requires_grad)
        if not _is_subclass(obj):
            return NotImplemented
        return _restore_subclass, (
            plain_values(obj),
            type(obj).__module__,
            type(obj).__qualname__,
            vars(obj),
            obj.requires_grad,
        )


@with_plain_tensors
def _restore_subclass(
    tensor: torch.Tensor, module: str, name: str, attributes: Mapping[str, Any], requires_grad: bool
) -> torch.Tensor:
    """Returns ``tensor`` as an instance of a subclass, without running its code."""
    kind: Any = sys.modules.get(module)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if not isinstance(kind, type):
        rank_zero_warn(f"A resume may not be exact: {module}.{name}, the class of a tensor, is not imported yet.")
        return tensor
    restored = tensor.as_subclass(kind).requires_grad_(requires_grad)
    vars(restored).update(attributes)
    return restored


def _restore_nested(parts: tuple[Any, ...], is_jagged: bool, requires_grad: bool) -> torch.Tensor:
    if not is_jagged:
        return torch.nested.nested_tensor([*parts], requires_grad=requires_grad)
    values, offsets, lengths, jagged_dim = parts
    restored = torch.nested.nested_tensor_from_jagged(values, offsets, lengths, jagged_dim)
    return restored.detach().requires_grad_(requires_grad)


class _Unpickler(pickle.Unpickler):
    """Loads data types and the classes of the user's code. Excludes installed packages."""

    def __init__(self, saved: dict[str, Any], device: torch.device) -> None:
        super().__init__(io.BytesIO(saved["bytes"].numpy().tobytes()))
        self._tensors, self._device = [*saved["tensors"]], device

    def persistent_load(self, pid: tuple[int, str]) -> torch.Tensor:
        index, device_type = pid
        if device_type != "cpu":  # stored, so that all references share the tensor
            self._tensors[index] = self._tensors[index].to(self._device)
        return self._tensors[index]

    def find_class(self, module: str, name: str) -> Any:
        value: Any = sys.modules.get(module)
        for part in name.split("."):
            value = getattr(value, part, None)
        file = getattr(sys.modules.get(module), "__file__", None) or ""
        is_library = "-packages" in file or module.partition(".")[0] in sys.stdlib_module_names
        if not is_library and isinstance(value, type) and value.__module__ == module:
            return value
        is_data = f"{module}.{name}" in _LOADED_NAMES or (module.startswith("numpy.random.") and "." not in name)
        if is_data or isinstance(value, torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} may execute code")

"""Wraps the functions that save and load checkpoints."""

from __future__ import annotations

import functools
import os
import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from stormproof.replay.recorder.checkpoint_log import CheckpointLog, has_tensors

CallAfterImport = Callable[[str, Callable[[ModuleType], None]], None]


def install(log: CheckpointLog, call_after_import: CallAfterImport) -> None:
    """Wraps the functions of torch and pickle now, and functions of other modules after their import."""
    for module in (torch, torch.serialization):
        _wrap_save(log, module, "save", target=1, keyword="f")
        _wrap_load(log, module, "load", keyword="f", is_checkpoint=True)
    _wrap_save(log, pickle, "dump", target=1, keyword="file", content=0)
    _wrap_load(log, pickle, "load", keyword="file", is_checkpoint=False)
    call_after_import("safetensors", lambda module: _wrap_load(log, module, "safe_open", keyword="filename"))
    call_after_import("safetensors.torch", functools.partial(_wrap_safetensors, log))
    call_after_import("numpy", functools.partial(_wrap_numpy, log))
    prefix = "torch.distributed.checkpoint.state_dict_"
    call_after_import(f"{prefix}saver", functools.partial(_wrap_distributed, log, save=True))
    call_after_import(f"{prefix}loader", functools.partial(_wrap_distributed, log, save=False))


def _wrap_safetensors(log: CheckpointLog, module: ModuleType) -> None:
    _wrap_save(log, module, "save_file", target=1, keyword="filename")
    _wrap_load(log, module, "load_file", keyword="filename")


def _wrap_numpy(log: CheckpointLog, module: ModuleType) -> None:
    for name, suffix in {"save": ".npy", "savez": ".npz", "savez_compressed": ".npz"}.items():
        _wrap_save(log, module, name, target=0, keyword="file", content=1, suffix=suffix)
    _wrap_load(log, module, "load", keyword="file", is_checkpoint=False)


def _wrap_save(
    log: CheckpointLog,
    module: Any,
    name: str,
    *,
    target: int,
    keyword: str,
    content: int | None = None,
    suffix: str = "",
) -> None:
    """Wraps a function that writes to its argument at the position ``target``, or to the one named ``keyword``.

    A function with a ``content`` position writes other files too: only those with tensors are checkpoints. NumPy
    appends a suffix to the path.
    """
    original = getattr(module, name)

    @functools.wraps(original)
    def save(*args: Any, **kwargs: Any) -> Any:
        file = args[target] if len(args) > target else kwargs.get(keyword)
        if content is not None and not has_tensors([*args[content:], kwargs]):
            return original(*args, **kwargs)
        if suffix and isinstance(file, str | os.PathLike) and not os.fspath(file).endswith(suffix):
            file = f"{os.fspath(file)}{suffix}"
        with log.save(file):
            return original(*args, **kwargs)

    setattr(module, name, save)


def _wrap_load(log: CheckpointLog, module: Any, name: str, *, keyword: str, is_checkpoint: bool = True) -> None:
    """Wraps a function that reads from its first argument. Others than checkpoints count if they have tensors."""
    original = getattr(module, name)

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        file = args[0] if args else kwargs.get(keyword)
        with log.load(file) as values:
            result = original(*args, **kwargs)
            if not is_checkpoint:
                values.append(result)
        return result

    setattr(module, name, load)


def _wrap_distributed(log: CheckpointLog, module: Any, *, save: bool) -> None:
    """Wraps torch.distributed.checkpoint, also if its package is already imported. A checkpoint is a folder."""
    package = sys.modules.get(module.__name__.rpartition(".")[0])
    for name in ("save", "async_save") if save else ("load",):
        original = getattr(module, name, None)
        if original is None:
            continue
        wrapped = _wrap_distributed_function(log, original, save=save)
        for owner in (module, package):
            if getattr(owner, name, None) is original:
                setattr(owner, name, wrapped)


def _wrap_distributed_function(log: CheckpointLog, original: Callable[..., Any], *, save: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        storage = kwargs.get("storage_writer" if save else "storage_reader")
        folder = kwargs.get("checkpoint_id") or getattr(storage, "path", None) or ""
        with log.save(folder) if save else log.load(folder):
            return original(*args, **kwargs)

    return function

"""Loads a checkpoint file with a memory map, so that the ranks of a node share its pages.

A read error in a mapped file raises SIGBUS, which ends the process without a message. On Linux 5.14 or later, all pages
are therefore read before torch maps the file, so that a read error or a truncated file raises an OSError. SIGBUS then
remains possible only if the system evicts a page and cannot read it again during the restore. The next attempt verifies
the file with ordinary reads, and skips it if it is damaged.
"""

from __future__ import annotations

import copy
import errno
import functools
import mmap
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from stormproof.checkpoint.load_check import find_system_error

_MADV_POPULATE_READ = 22
"""Advice of Linux 5.14 that reads pages, and reports an error where a read access would raise SIGBUS."""
_POPULATED_BYTES = 1 << 26
"""Bytes per call of ``madvise``, which does not release the GIL."""


def is_mappable(path: Path) -> bool:
    """Returns whether :func:`load_mapped` can load a file: a zip archive, on a system that can report read errors."""
    return _can_populate() and zipfile.is_zipfile(path)


def load_mapped(
    path: Path, module: nn.Module, *, weights_only: bool = True, copies_optimizer_states: bool
) -> dict[str, Any]:
    """Loads a checkpoint with a private memory map of its file.

    Only tensors that a restore copies refer to the map: parameters and buffers, and optimizer states that are moved or
    distributed. All other tensors are copied, because a hook or a callback may keep them. A hook that keeps a tensor of
    the ``state_dict`` keeps the map, which occupies the disk space of the file after its deletion.

    Args:
        path: Zip archive of ``torch.save``.
        module: Module that loads the ``state_dict`` by copying.
        weights_only: As for ``torch.load``.
        copies_optimizer_states: Whether to copy optimizer states. Required on a CPU, where
            ``Optimizer.load_state_dict`` keeps the loaded tensors.

    Raises:
        OSError: If the file cannot be read or mapped.
    """
    if _can_populate():
        _read_pages(path)
    try:
        with torch.serialization.set_default_mmap_options(mmap.MAP_PRIVATE):  # changes must not reach the file
            checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
    except Exception as error:
        system_error = find_system_error(error)
        if system_error is None:
            raise
        raise system_error from error
    mapped_tensors = [*_tensors_copied_by(module, checkpoint.get("state_dict", {}))]
    if not copies_optimizer_states:
        mapped_tensors += _multi_element_tensors(checkpoint.get("optimizer_states", []))
    nested_tensors = (leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor) and leaf.is_nested)
    clones = {id(tensor): tensor.clone() for tensor in nested_tensors}  # torch does not deep-copy them
    return copy.deepcopy(checkpoint, clones | {id(tensor): tensor for tensor in mapped_tensors})


def _tensors_copied_by(module: nn.Module, state_dict: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yields parameters and buffers. Modules keep other entries, such as the states of metrics."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    return (value for name, value in state_dict.items() if name in names and isinstance(value, torch.Tensor))


def _multi_element_tensors(optimizer_states: Any) -> Iterator[torch.Tensor]:
    """Yields all tensors with several elements. Optimizers keep others, such as the step, on the CPU."""
    leaves = tree_leaves(optimizer_states)
    return (leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.numel() > 1)


@functools.cache
def _can_populate() -> bool:
    if sys.platform != "linux":
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as memory:
            memory.madvise(_MADV_POPULATE_READ)
    except OSError:  # Linux before 5.14
        return False
    return True


def _read_pages(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        _populate(pages, path)


def _populate(pages: mmap.mmap, path: Path) -> None:
    for start in range(0, len(pages), _POPULATED_BYTES):
        try:
            pages.madvise(_MADV_POPULATE_READ, start, min(_POPULATED_BYTES, len(pages) - start))
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from error

"""Copies a stock Lightning checkpoint into a folder of verified checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stormproof.checkpoint.file_names import parse_file_name
from stormproof.checkpoint.load_check import find_load_problem
from stormproof.checkpoint.manifest import Checkpoint, CommitInfo
from stormproof.checkpoint.store import Store
from stormproof.errors import NotResumableError


def adopt(source: Path, folder: Path | Store | None = None) -> Checkpoint:
    """Commits a copy of a stock Lightning checkpoint. The original file stays unchanged.

    The copy becomes the newest checkpoint of the folder, and the next attempt resumes from it. That resume is not
    exact, because a stock checkpoint contains neither the states of the random number generators nor the position in
    the data. The manifest takes the step and the epoch from the file. It records a world size of 0 (unknown) and
    attempt 0 (no attempt wrote it).

    Args:
        source: A ``.ckpt`` file.
        folder: Folder of checkpoints, which is created if it does not exist, or a store. The folder of ``source`` if
            None.

    Raises:
        NotResumableError: If the file is not a Lightning checkpoint, or no run may resume from it.
        FolderTakenError: If a running process owns the folder.
        OSError: If the file cannot be read or the folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"state_dict": {}, "global_step": 600, "epoch": 3}, folder / "last.ckpt")
        >>> adopt(folder / "last.ckpt").path.name
        '000001-step-600.ckpt'
    """
    if not source.is_file():
        raise NotResumableError(f"{source} is not a file. Pass a single .ckpt file that Lightning saved.")
    if parse_file_name(source.name) and source.with_suffix(".json").exists():
        raise NotResumableError(
            f"{source} already has a manifest. Resume from it, or adopt a checkpoint that Lightning saved."
        )
    step, epoch = _read_step_and_epoch(source)
    store = folder if isinstance(folder, Store) else Store(folder or source.parent)
    lease = store.acquire_lease()
    try:
        with source.open("rb") as file:
            return store.commit(
                lambda copy: shutil.copyfileobj(file, copy, 1 << 20),
                CommitInfo(step=step, epoch=epoch, world_size=0, adopted=True),
                attempt=0,
                fence=lease.check,
            )
    finally:
        lease.release()


def _read_step_and_epoch(source: Path) -> tuple[int, int]:
    problem = find_load_problem(source)
    if problem is not None:
        raise NotResumableError(f"{source} cannot be adopted: {problem}")
    import torch  # noqa: PLC0415 (it takes a second)

    from stormproof.checkpoint.finite_check import find_non_finite_tensors  # noqa: PLC0415 (it needs torch)

    checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    missing_key = _find_missing_key(checkpoint)
    if missing_key:
        raise NotResumableError(f"{source} is not a Lightning checkpoint: it has no {missing_key}")
    try:
        non_finite_names = find_non_finite_tensors(checkpoint)
    except (KeyError, TypeError, AttributeError) as error:
        raise NotResumableError(
            f"{source} is not a Lightning checkpoint: its optimizer states have another structure"
        ) from error
    if non_finite_names:
        raise NotResumableError(
            f"{source} cannot be adopted: {non_finite_names[0]} is not finite ({len(non_finite_names)} such tensors). "
            "Adopt an earlier checkpoint."
        )
    return checkpoint["global_step"], checkpoint["epoch"]


def _find_missing_key(checkpoint: Any) -> str | None:
    """Returns the first key of a Lightning checkpoint that is missing or invalid. None if all are valid."""
    if not isinstance(checkpoint, Mapping):
        return "keys"
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        return "state_dict"
    return next((key for key in ("global_step", "epoch") if not _is_count(checkpoint.get(key))), None)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0

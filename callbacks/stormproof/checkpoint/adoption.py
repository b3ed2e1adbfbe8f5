"""Takes a checkpoint of stock Lightning into a folder of verified ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stormproof.checkpoint.atomic import make_folder
from stormproof.checkpoint.file_names import parse_file_name
from stormproof.checkpoint.lease import Lease
from stormproof.checkpoint.manifest import Checkpoint, CommitInfo
from stormproof.checkpoint.store import Store
from stormproof.checkpoint.verification import find_load_problem
from stormproof.errors import NotResumableError


def adopt(source: Path, folder: Path | None = None) -> Checkpoint:
    """Commits a copy of the stock Lightning checkpoint at ``source``; the file itself stays as it is.

    The copy becomes the newest checkpoint of the folder, from which the next start goes on. It holds neither the random
    number generators nor the position in the data, so that this one resume is not exact. Step and epoch come from the
    file. The number of ranks is not in it: the manifest says 0, for not known, since a stock checkpoint holds nothing
    that belongs to one rank. No attempt wrote it: its attempt is 0.

    Args:
        source: a ``.ckpt`` file.
        folder: the folder of checkpoints, made if it is not there; by default the one that ``source`` is in.

    Raises:
        NotResumableError: if the file is no Lightning checkpoint, or must not be resumed from.
        FolderTakenError: if a run that still lives holds the folder.
        OSError: if the file cannot be read, or the folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"state_dict": {}, "global_step": 600, "epoch": 3}, folder / "last.ckpt")
        >>> adopt(folder / "last.ckpt").path.name
        '000001-step-600.ckpt'
    """
    if not source.is_file():
        raise NotResumableError(f"{source} is no file: adopt takes one .ckpt file of Lightning")
    if parse_file_name(source.name) and source.with_suffix(".json").exists():
        raise NotResumableError(f"{source} has a manifest beside it: it is a checkpoint of ours already")
    step, epoch = _read_step_and_epoch(source)
    store = Store(folder or source.parent)
    make_folder(store.folder)
    lease = Lease(store.folder)
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
        raise NotResumableError(f"{source} is not adopted: {problem}")
    import torch  # noqa: PLC0415 (it takes a second)

    from stormproof.checkpoint.finite_check import find_non_finite_tensors  # noqa: PLC0415 (it needs torch)

    checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    missing_key = _find_missing_key(checkpoint)
    if missing_key:
        raise NotResumableError(f"{source} is no Lightning checkpoint: it has no {missing_key}")
    try:
        non_finite_names = find_non_finite_tensors(checkpoint)
    except (KeyError, TypeError, AttributeError) as error:
        raise NotResumableError(
            f"{source} is no Lightning checkpoint: its optimizer states are not as Lightning's"
        ) from error
    if non_finite_names:
        raise NotResumableError(
            f"{source} is not adopted: {non_finite_names[0]} is not finite ({len(non_finite_names)} such tensors); "
            f"take one from before"
        )
    return checkpoint["global_step"], checkpoint["epoch"]


def _find_missing_key(checkpoint: Any) -> str | None:
    """The first thing that a Lightning checkpoint has and this has not."""
    if not isinstance(checkpoint, Mapping):
        return "keys"
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        return "state_dict"
    return next((key for key in ("global_step", "epoch") if not _is_count(checkpoint.get(key))), None)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0

"""Writes checkpoints atomically, and finds the object store for their copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stormproof.checkpoint import atomic_write
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.long_waits import long_wait
from stormproof_train.config.signature_binding import Target
from stormproof_train.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in the same folder, fsyncs it and renames it.

    Lightning's implementation writes to ``$TMPDIR`` and moves the file. If that is another file system, a kill during
    the move leaves a truncated file in place of the previous checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes ``checkpoint`` to ``path``."""
        if storage_options is not None:
            raise TypeError("storage_options are for object stores, but checkpoints are written to a folder")
        with long_wait("storage"), atomic_write(path) as file:
            torch.save(checkpoint, file)


def locate_mirror(mirror: str | None, run_name: str, callbacks: Iterable[Target]) -> str | None:
    """Returns the URL of the copies of a run, ``<mirror>/<run name>``. None without a mirror.

    Args:
        mirror: Normalized URL for the copies of all runs.
        run_name: Name of the run.
        callbacks: Callbacks of the run, not built yet.

    Raises:
        UserError: If no callback uses the mirror, or the object store cannot be opened.
        MissingExtraError: If the extra ``remote`` is not installed.
    """
    if mirror is None:
        return None
    if not any(callback.uses_injected("mirror") for callback in callbacks):
        raise UserError(
            f"checkpoints.mirror={mirror} has no effect, because no callback uses it. Set callbacks=default, or "
            "checkpoints.mirror=null."
        )
    try:
        return ObjectStorage(f"{mirror}/{run_name}").location
    except ValueError as error:  # the name of the run contains a character that a URL cannot contain
        raise UserError(f"checkpoints.mirror: {error}") from error
    except OSError as error:
        raise UserError(
            f"checkpoints.mirror={mirror} cannot be opened: {error.strerror}. Set checkpoints.mirror=null to keep no "
            "copies."
        ) from error

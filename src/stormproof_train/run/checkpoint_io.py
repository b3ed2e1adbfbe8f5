"""Writes checkpoints atomically."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stormproof.checkpoint import atomic_write
from stormproof.long_waits import long_wait


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

"""Checkpoints that are whole or not there."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stormproof.checkpoint import atomic_write
from stormproof.long_waits import long_wait


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, fsyncs it and renames it.

    Lightning's own writes to ``$TMPDIR`` and moves the file; where that is another file system, a kill in between
    leaves a torn file in the place of the good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes ``checkpoint`` to ``path``."""
        if storage_options is not None:
            raise TypeError("storage_options are for object stores, and this writes to a folder")
        with long_wait("storage"), atomic_write(path) as file:
            torch.save(checkpoint, file)

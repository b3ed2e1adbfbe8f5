"""Handles Ctrl-C in a job whose further ranks are started by rank 0.

A terminal sends SIGINT to every process. Rank 0 must record why the run ended and stop the other ranks. If another
rank exits first, Lightning's launcher kills rank 0 before it can do so.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning import Callback


@contextmanager
def block_sigint_during_launch(trainer: pl.Trainer) -> Iterator[None]:
    """Blocks SIGINT until all ranks are launched. Processes started in the block inherit the mask.

    A new process inherits a blocked signal as pending until it unblocks it. Rank 0 unblocks it after all ranks have
    synchronized. Another rank unblocks it after it ignores the signal, at the start of ``cli.main.main``.
    """
    if trainer.world_size == 1:
        yield
        return
    trainer.callbacks.append(_UnblockSigint())  # pyright: ignore[reportAttributeAccessIssue] (set in Trainer.__init__)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        _unblock_sigint()


class _UnblockSigint(Callback):
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Unblocks SIGINT in the first hook after the ranks have synchronized."""
        _unblock_sigint()


def _unblock_sigint() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

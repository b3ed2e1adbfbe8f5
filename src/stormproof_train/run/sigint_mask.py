"""Ctrl-C in a job whose further ranks are started by rank 0.

A terminal sends it to every process. Rank 0 is to write down why the run ended and take the others along; a rank that
dies of it first makes Lightning's launcher kill rank 0 before it can.
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

    A blocked signal is inherited by a new process and waits for whoever lifts the block: here once the ranks have met,
    in a further rank once it ignores the signal, the first thing that ``cli.main.main`` does there.
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
        """The first hook after the ranks have met."""
        _unblock_sigint()


def _unblock_sigint() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

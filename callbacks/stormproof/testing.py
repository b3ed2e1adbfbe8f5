"""Faults to order: drill your own run before the cluster does.

A fault is an action aimed at a rank, a step and a phase of the training or of a commit::

    faults = Faults().kill(step=33).slow(0.5, at="validation batch", rank=1)
    pl.Trainer(callbacks=[recovery, faults])

Each strikes once. Phases of the training are hooks of Lightning; the phases of a commit are the points at which a crash
would leave the folder in another state.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch.utils._pytree import tree_leaves

from stormproof.checkpoint import COMMIT_POINTS, PRUNING_POINTS, observe
from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.lightning.find_callback import find_callback

TRAINING_PHASES = (
    "fit begins", "epoch begins", "batch begins", "before backward", "before optimizer step", "batch ends",
    "validation begins", "validation batch", "validation ends", "epoch ends", "fit ends",
)  # fmt: skip
PHASES = (*TRAINING_PHASES, *COMMIT_POINTS, *PRUNING_POINTS)
"""Where a fault can strike."""

Action = Callable[["Faults"], None]


@dataclass
class _Aimed:
    action: Action
    at: str
    step: int | None
    rank: int | None
    struck: bool = False

    def hits(self, phase: str, step: int, rank: int) -> bool:
        return not self.struck and self.at == phase and self.step in {None, step} and self.rank in {None, rank}


class Faults(Callback):
    """Strikes where it was aimed at.

    Every method takes ``at``, one of :data:`PHASES`; ``step``, the ``global_step`` at which to strike, None for the
    first time that the phase is reached; and ``rank``, None for every rank. The phases of a commit are rank 0's, and
    ``step`` is the checkpoint's: training may be ahead of it.

    Example:
        >>> faults = Faults().kill(step=33).nan(step=40)
        >>> Faults().kill(at="lunch")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: at='lunch' is no phase; there is: fit begins, epoch begins, ...
    """

    def __init__(self) -> None:
        self._faults: list[_Aimed] = []
        self._observing: AbstractContextManager[Any] | None = None
        self.trainer: pl.Trainer | None = None
        self.batch: Any = None  # the one being trained on

    def kill(self, at: str = "batch ends", step: int | None = None, rank: int | None = None) -> Faults:
        """SIGKILL: the process is gone, and nothing of it runs any more."""
        return self._aim(lambda _: os.kill(os.getpid(), signal.SIGKILL), at, step, rank)

    def stop(self, at: str = "batch ends", step: int | None = None, rank: int | None = None) -> Faults:
        """SIGSTOP: the process stands still, as a hung one does, until somebody continues or kills it."""
        return self._aim(lambda _: os.kill(os.getpid(), signal.SIGSTOP), at, step, rank)

    def signal(
        self,
        number: int = signal.SIGTERM,
        at: str = "batch ends",
        step: int | None = None,
        rank: int | None = None,
        *,
        group: bool = False,
    ) -> Faults:
        """Sends a signal to its own process, or to the whole process group, as a scheduler does: workers included."""
        return self._aim(lambda _: _signal_group(number) if group else os.kill(os.getpid(), number), at, step, rank)

    def fail(
        self,
        error: BaseException | None = None,
        at: str = "batch ends",
        step: int | None = None,
        rank: int | None = None,
    ) -> Faults:
        """Raises ``error``, by default a RuntimeError."""

        def action(_: Faults) -> None:
            raise error or RuntimeError(f"a fault ordered at {at!r}")

        return self._aim(action, at, step, rank)

    def slow(
        self, seconds: float, at: str = "batch begins", step: int | None = None, rank: int | None = None
    ) -> Faults:
        """Sleeps for ``seconds``."""
        return self._aim(lambda _: time.sleep(seconds), at, step, rank)

    def nan(self, step: int | None = None, rank: int | None = None) -> Faults:
        """Sets a gradient to NaN just before the optimizer step; the weights are NaN from then on."""
        return self._aim(_poison, "before optimizer step", step, rank)

    def spike(
        self, factor: float = 1000.0, at: str = "batch begins", step: int | None = None, rank: int | None = None
    ) -> Faults:
        """Multiplies the floating-point numbers of a training batch, as broken data would; by NaN, if that is asked."""
        return self._aim(lambda faults: _multiply(faults.batch, factor), at, step, rank)

    def torn_write(self, at: str = "checkpoint renamed", step: int | None = None) -> Faults:
        """Cuts the newest checkpoint file in half, as a file system does that lost the second half in a crash."""
        return self._aim(lambda faults: tear(faults.newest_file()), at, step, rank=None)

    def bit_flip(self, at: str = "log appended", step: int | None = None) -> Faults:
        """Flips one bit in the middle of the newest checkpoint file."""
        return self._aim(lambda faults: flip_bit(faults.newest_file()), at, step, rank=None)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._faults)

    def newest_file(self) -> Path:
        """The checkpoint file that was written last, of the :class:`stormproof.CheckpointRecovery` beside this."""
        assert self.trainer is not None
        recovery = find_callback(self.trainer, CheckpointRecovery)
        assert recovery is not None, "there is no CheckpointRecovery, whose file to strike"
        return max(recovery.store.folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)

    def strike(self, phase: str) -> None:
        """Does what was aimed at this phase, now."""
        assert self.trainer is not None
        self._strike(phase, self.trainer.global_step)

    def _strike(self, phase: str, step: int) -> None:
        assert self.trainer is not None
        for fault in self._faults:
            if fault.hits(phase, step, self.trainer.global_rank):
                fault.struck = True
                fault.action(self)

    def _strike_in_commit(self, phase: str) -> None:
        """In the thread that writes, where the step is the checkpoint's."""
        assert self.trainer is not None
        recovery = find_callback(self.trainer, CheckpointRecovery)
        writer = None if recovery is None else recovery.saving.writer
        self._strike(phase, self.trainer.global_step if writer is None or writer.step is None else writer.step)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watches the commits too."""
        self.trainer = trainer
        self._observing = observe(self._strike_in_commit)
        self._observing.__enter__()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watches no more."""
        self._unwatch()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Watches no more."""
        self._unwatch()

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("fit begins")

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("epoch begins")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Strikes."""
        self.batch = batch
        self.strike("batch begins")

    def on_before_backward(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("before backward")

    def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("before optimizer step")

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("batch ends")

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("validation begins")

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("validation batch")

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("validation ends")

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("epoch ends")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Strikes."""
        self.strike("fit ends")

    def _aim(self, action: Action, at: str, step: int | None, rank: int | None) -> Faults:
        if at not in PHASES:
            raise ValueError(f"at={at!r} is no phase; there is: {', '.join(PHASES)}")
        self._faults.append(_Aimed(action, at, step, rank))
        return self

    def _unwatch(self) -> None:
        if self._observing is not None:
            self._observing.__exit__(None, None, None)
            self._observing = None


def ordered() -> Faults:
    """The faults of the data that the environment variable ``STORMPROOF_FAULTS`` orders, as ``scripts/drill.py`` does.

    It holds words like ``nan:120``, for a batch of NaN at the ``global_step`` 120, and ``spike:340``, for one that is a
    thousand times as large. Where it is not there, nothing strikes.

    Raises:
        ValueError: for a word that is none of these.

    Example:
        >>> os.environ["STORMPROOF_FAULTS"] = "nan:120 spike:340"
        >>> len(ordered())
        2
        >>> del os.environ["STORMPROOF_FAULTS"]
    """
    faults = Faults()
    for word in os.environ.get("STORMPROOF_FAULTS", "").split():
        kind, _, step = word.partition(":")
        if kind not in _FACTORS or not step.isdecimal():
            raise ValueError(f"STORMPROOF_FAULTS holds {word!r}; it should be nan:STEP or spike:STEP")
        faults.spike(_FACTORS[kind], step=int(step))
    return faults


_FACTORS = {"nan": math.nan, "spike": 1000.0}


def tear(path: Path, keep: float = 0.5) -> None:
    """Cuts a file: only its first part stays.

    Args:
        path: the file.
        keep: the share of its bytes that stays, in [0, 1).
    """
    os.truncate(path, int(path.stat().st_size * keep))


def flip_bit(path: Path, bit: int | None = None) -> None:
    """Flips one bit of a file in its place.

    Args:
        path: the file.
        bit: which, from 0; None for one in the middle.
    """
    with path.open("r+b") as file:
        size = path.stat().st_size
        offset, shift = divmod(size * 4 if bit is None else bit, 8)
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << shift)]))


def _signal_group(number: int) -> None:
    """By another process, as from a scheduler: workers may listen to their parent alone."""
    words = ["kill", f"-{signal.Signals(number).name.removeprefix('SIG')}", "--", f"-{os.getpgrp()}"]
    os.waitpid(os.posix_spawnp("kill", words, os.environ), 0)


def _poison(faults: Faults) -> None:
    assert faults.trainer is not None
    for parameter in faults.trainer.lightning_module.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(torch.nan)
            return


def _multiply(batch: Any, factor: float) -> None:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            leaf.mul_(factor)

"""Injects faults into a run, to test how it recovers.

Each fault has an action, a position (a Lightning hook or a step of the commit protocol), a step and a rank::

    faults = FaultInjector().kill(step=33).slow(0.5, at="on_validation_batch_start", rank=1)
    pl.Trainer(callbacks=[recovery, faults])

Each fault occurs once. A crash leaves a different folder state at each position in the commit protocol. If training
ends before a fault occurs, an error is raised: otherwise the test would pass without the fault.
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

from stormproof.arguments import check_arguments
from stormproof.checkpoint import COMMIT_POINTS, PRUNING_POINTS, SHARD_POINTS, observe_fault_points
from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.errors import StormproofError
from stormproof.event_log import log_event
from stormproof.lightning.find_callback import find_callback

HOOKS = (
    "on_fit_start", "on_train_epoch_start", "on_train_batch_start", "on_before_backward", "on_before_optimizer_step",
    "on_train_batch_end", "on_validation_start", "on_validation_batch_start", "on_validation_end", "on_train_epoch_end",
    "on_train_end",
)  # fmt: skip
POSITIONS = (*HOOKS, *COMMIT_POINTS, *SHARD_POINTS, *PRUNING_POINTS)
"""Positions at which a fault can occur: Lightning hooks and steps of the commit protocol."""

_HOOKS_BEFORE_UPDATE = HOOKS[: HOOKS.index("on_train_batch_end")]
_POSITIONS_OF_RANK_ZERO = {*COMMIT_POINTS, *PRUNING_POINTS}

Action = Callable[["FaultInjector"], None]


@dataclass
class _Fault:
    action: Action
    at: str
    step: int | None
    rank: int | None
    is_pending: bool = True

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name in ("step", "rank") if (value := getattr(self, name)) is not None]
        return ", ".join([f"`{self.at}`", *parts])

    def is_due(self, at: str, step: int, world_size: int) -> bool:
        # a position may miss the step itself: with two optimizers, global_step increases by two
        is_reached = self.at == at and (self.step is None or step >= self.step)
        return self.is_pending and is_reached and (self.rank or 0) < world_size

    def precedes(self, step: int) -> bool:
        """Returns True if a run that resumes from ``step`` has passed the fault in an earlier attempt."""
        return step > 0 and self.step is not None and self.step < step + (self.at not in _HOOKS_BEFORE_UPDATE)


def _make_hook(name: str) -> Callable[..., None]:
    return lambda self, *_args, **_kwargs: self.trigger(name)


class FaultInjector(Callback):
    """Injects faults at given hooks, steps and ranks.

    All methods share these arguments and return the injector, so that calls can be chained:

    - ``at``: Position, one of :data:`POSITIONS`. Positions in the commit protocol occur on rank 0 only, except
      ``shard …`` positions, which every rank reaches.
    - ``step``: The fault occurs when the position is first reached at this or a later ``global_step``. In the commit
      protocol, the step of the checkpoint, which the training loop may have passed. If None, the first time that the
      position is reached. A run that resumes from a later step skips the fault and logs this.
    - ``rank``: Rank on which the fault occurs. If None, all ranks.

    Raises:
        ValueError: If ``at`` is not one of :data:`POSITIONS`, or if ``rank`` does not reach it.
        StormproofError: In ``fit``, ``validate``, ``test`` and ``predict``, if a fault did not occur.

    Example:
        >>> faults = FaultInjector().kill(step=33).nan(step=40)
        >>> FaultInjector().kill(at="lunch")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: `at` must be one of on_fit_start, on_train_epoch_start, ..., got 'lunch'.
    """

    def __init__(self) -> None:
        self._faults: list[_Fault] = []
        self._observing: AbstractContextManager[Any] | None = None
        self._is_started = self._has_ended = False
        self.trainer: pl.Trainer | None = None
        self.batch: Any = None
        """The current training batch."""

    def kill(self, at: str = "on_train_batch_end", step: int | None = None, rank: int | None = None) -> FaultInjector:
        """Kills the process with SIGKILL."""
        return self._add(lambda _: os.kill(os.getpid(), signal.SIGKILL), at, step, rank)

    def stop(self, at: str = "on_train_batch_end", step: int | None = None, rank: int | None = None) -> FaultInjector:
        """Suspends the process with SIGSTOP, as if it hangs."""
        return self._add(lambda _: os.kill(os.getpid(), signal.SIGSTOP), at, step, rank)

    @check_arguments(number="at least 1")
    def signal(
        self,
        number: int = signal.SIGTERM,
        at: str = "on_train_batch_end",
        step: int | None = None,
        rank: int | None = None,
        *,
        group: bool = False,
    ) -> FaultInjector:
        """Sends a signal to the process or, if ``group``, to its process group, as schedulers do."""
        return self._add(
            lambda _: _signal_process_group(number) if group else os.kill(os.getpid(), number), at, step, rank
        )

    @check_arguments()
    def fail(
        self,
        error: BaseException | None = None,
        at: str = "on_train_batch_end",
        step: int | None = None,
        rank: int | None = None,
    ) -> FaultInjector:
        """Raises ``error``, by default a RuntimeError."""

        def action(_: FaultInjector) -> None:
            raise error or RuntimeError(f"injected fault at {at!r}")

        return self._add(action, at, step, rank)

    @check_arguments(seconds="at least 0")
    def slow(
        self, seconds: float, at: str = "on_train_batch_start", step: int | None = None, rank: int | None = None
    ) -> FaultInjector:
        """Sleeps for ``seconds``."""
        return self._add(lambda _: time.sleep(seconds), at, step, rank)

    def nan(self, step: int | None = None, rank: int | None = None) -> FaultInjector:
        """Sets a gradient to NaN before the optimizer step, so that the weights become NaN."""
        return self._add(_set_gradient_to_nan, "on_before_optimizer_step", step, rank)

    @check_arguments()
    def spike(
        self, factor: float = 1000.0, at: str = "on_train_batch_start", step: int | None = None, rank: int | None = None
    ) -> FaultInjector:
        """Multiplies the floating-point tensors of the current batch by ``factor``, which may be NaN."""
        return self._add(lambda faults: _multiply_batch(faults.batch, factor), at, step, rank)

    def torn_write(self, at: str = "checkpoint renamed", step: int | None = None) -> FaultInjector:
        """Truncates the newest checkpoint file to half its size, as a file system may after a power failure."""
        return self._add(lambda faults: truncate_file(faults.newest_file()), at, step, rank=None)

    def bit_flip(self, at: str = "log appended", step: int | None = None) -> FaultInjector:
        """Flips one bit in the middle of the newest checkpoint file."""
        return self._add(lambda faults: flip_bit(faults.newest_file()), at, step, rank=None)

    def __len__(self) -> int:
        """Returns the number of faults."""
        return len(self._faults)

    def newest_file(self) -> Path:
        """Returns the newest file of the newest checkpoint of the trainer's :class:`stormproof.CheckpointRecovery`."""
        assert self.trainer is not None
        recovery = find_callback(self.trainer, CheckpointRecovery)
        assert recovery is not None, "torn_write and bit_flip require CheckpointRecovery among the callbacks"
        newest = max(recovery.store.folder.glob("*.ckpt"), key=_modification_time)
        return max(newest.iterdir(), key=_modification_time) if newest.is_dir() else newest

    def trigger(self, at: str) -> None:
        """Runs the faults of position ``at`` and the current step."""
        assert self.trainer is not None
        self._trigger(at, self.trainer.global_step)

    def _trigger(self, at: str, step: int) -> None:
        assert self.trainer is not None
        if at != "on_fit_start":  # Lightning restores the step after it
            self._skip_earlier_faults(self.trainer.global_step)
        for fault in self._faults:
            if fault.is_due(at, step, self.trainer.world_size):
                fault.is_pending = False
                if fault.rank in {None, self.trainer.global_rank}:
                    fault.action(self)

    def _skip_earlier_faults(self, start_step: int) -> None:
        """Skips the faults of earlier attempts when an attempt starts."""
        earlier_faults = [fault for fault in self._faults if fault.is_pending and fault.precedes(start_step)]
        if not self._is_started and earlier_faults:
            faults = "; ".join(map(str, earlier_faults))
            log_event(__name__, f"faults before step {start_step}, from which the run resumes, are skipped: {faults}")
            for fault in earlier_faults:
                fault.is_pending = False
        self._is_started = True

    def _check_all_occurred(self, trainer: pl.Trainer) -> None:
        self._skip_earlier_faults(trainer.global_step)
        missing_faults = [
            str(fault)
            for fault in self._faults
            if fault.is_pending and (trainer.is_global_zero or fault.at not in _POSITIONS_OF_RANK_ZERO)
        ]
        if missing_faults:
            faults = "; ".join(missing_faults)
            raise StormproofError(
                f"The run ended at step {trainer.global_step} before these faults occurred: {faults}. "
                "Choose positions, steps and ranks that the run reaches, or remove FaultInjector from this Trainer."
            )

    def _trigger_in_commit(self, at: str) -> None:
        """Runs in the writer thread, where the step is the step of the checkpoint."""
        assert self.trainer is not None
        recovery = find_callback(self.trainer, CheckpointRecovery)
        step = None
        if recovery is not None:
            coordinator = recovery.save_coordinator
            step = coordinator.shard_step if coordinator.writer is None else coordinator.writer.submitted_step
        self._trigger(at, self.trainer.global_step if step is None else step)

    @check_arguments(step="at least 0", rank="at least 0")
    def _add(self, action: Action, at: str, step: int | None, rank: int | None) -> FaultInjector:
        if at not in POSITIONS:
            raise ValueError(f"`at` must be one of {', '.join(POSITIONS)}, got {at!r}.")
        if at in _POSITIONS_OF_RANK_ZERO and rank not in {None, 0}:
            raise ValueError(f"`rank` must be 0 or None with `at={at!r}`, which only rank 0 reaches, got {rank}.")
        self._faults.append(_Fault(action, at, step, rank))
        return self

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts observing commits."""
        self.trainer = trainer
        self._is_started, self._has_ended = False, stage != "fit"
        self._observing = observe_fault_points(self._trigger_in_commit)
        self._observing.__enter__()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stops observing commits. Raises an error if a fault did not occur."""
        self._stop_observing()
        if self._has_ended:  # False if Lightning's tuner ends the fit early
            self._check_all_occurred(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stops observing commits."""
        self._stop_observing()

    def _stop_observing(self) -> None:
        if self._observing is not None:
            self._observing.__exit__(None, None, None)
            self._observing = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records that training ended without an exception."""
        self._has_ended = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Runs the faults of this hook."""
        self.batch = batch
        self.trigger("on_train_batch_start")


for _name in {*HOOKS} - {"on_train_batch_start"}:
    setattr(FaultInjector, _name, _make_hook(_name))


def faults_from_environment() -> FaultInjector:
    """Returns the faults listed in the environment variable ``STORMPROOF_FAULTS``; ``scripts/drill.py`` sets it.

    The variable contains words separated by spaces. ``nan:120`` multiplies the batch at ``global_step`` 120 by NaN.
    ``spike:340`` multiplies the batch at step 340 by 1000. Without the variable, there are no faults.

    Raises:
        ValueError: If a word has another form.

    Example:
        >>> os.environ["STORMPROOF_FAULTS"] = "nan:120 spike:340"
        >>> len(faults_from_environment())
        2
        >>> del os.environ["STORMPROOF_FAULTS"]
    """
    faults = FaultInjector()
    for word in os.environ.get("STORMPROOF_FAULTS", "").split():
        kind, _, step = word.partition(":")
        if kind not in _SPIKE_FACTORS or not step.isdecimal():
            raise ValueError(f"STORMPROOF_FAULTS must contain words like nan:STEP and spike:STEP, got {word!r}.")
        faults.spike(_SPIKE_FACTORS[kind], step=int(step))
    return faults


_SPIKE_FACTORS = {"nan": math.nan, "spike": 1000.0}


@check_arguments(kept_fraction="at least 0 and below 1")
def truncate_file(path: Path, kept_fraction: float = 0.5) -> None:
    """Truncates a file.

    Args:
        path: File.
        kept_fraction: Fraction of its bytes to keep, in [0, 1).
    """
    os.truncate(path, int(path.stat().st_size * kept_fraction))


@check_arguments(bit="at least 0")
def flip_bit(path: Path, bit: int | None = None) -> None:
    """Flips one bit of a file in place.

    Args:
        path: File.
        bit: Index of the bit, from 0. A bit in the middle if None.
    """
    with path.open("r+b") as file:
        size = path.stat().st_size
        offset, shift = divmod(size * 4 if bit is None else bit, 8)
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << shift)]))


def _modification_time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _signal_process_group(number: int) -> None:
    """Sends the signal from another process, as a scheduler does: workers ignore signals that their parent sends."""
    command = ["kill", f"-{signal.Signals(number).name.removeprefix('SIG')}", "--", f"-{os.getpgrp()}"]
    os.waitpid(os.posix_spawnp("kill", command, os.environ), 0)


def _set_gradient_to_nan(faults: FaultInjector) -> None:
    assert faults.trainer is not None
    for parameter in faults.trainer.lightning_module.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(torch.nan)
            return


def _multiply_batch(batch: Any, factor: float) -> None:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            leaf.mul_(factor)

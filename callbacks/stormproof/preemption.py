"""A training that is told to end leaves at a place from which it goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import Callback

from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.distributed.collectives import largest
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.distributed.gloo_shutdown import part_before_exit
from stormproof.distributed.rank import follows_lightnings_rank_zero
from stormproof.distributed.sync_schedule import Meetings
from stormproof.errors import NotResumableError, PreemptedExit
from stormproof.lightning import internals
from stormproof.lightning.find_callback import find_callback
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.signals.listener import Listener
from stormproof.signals.worker_signal_mask import deafen

GRACE_SECONDS = 30.0
"""Between the signal and the kill, where nobody says: what SLURM, Kubernetes and torchrun give by default."""


class Preemption(InactiveCopies, Callback):
    """Answers SIGTERM, SIGINT, SIGUSR1 and SIGUSR2: all ranks save at the same step and leave, rank 0 with code 75.

    The signal may reach one rank or all. About once a second, between two steps, the ranks ask each other whether one
    came; then :class:`stormproof.CheckpointRecovery`, which must be beside it, commits that step, all wait until it is
    committed, and ``fit`` raises :class:`stormproof.errors.PreemptedExit`, a SystemExit. The same command goes on
    there, bit for bit. A validation goes on to its end if, at its pace, there is time for it and for saving; else it is
    left between two batches, and training goes on from what was committed before. So are a sanity check, a test and a
    prediction; on several ranks only where all know how many batches they have, else after their end.

    Lightning's own handlers, and the ones that were there before, answer no signal meanwhile; afterwards the latter do.
    So Lightning requeues no SLURM job: the job script does, by the exit code. Loader workers hear none of these signals
    (forked ones, on Linux). A second Ctrl-C, a second or more after the first, does not wait.

    Args:
        grace_seconds: from the signal to the kill, above 0. By default 30, or until SLURM's end of the job where
            that is later and the signal is one of those that SLURM sends ahead. Saving is tried even if it takes
            longer, with a warning.

    Raises:
        ValueError: if ``grace_seconds`` is out of its range.

    Example:
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints")
        >>> trainer = pl.Trainer(callbacks=[Preemption(), recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())  # doctest: +SKIP
    """

    def __init__(self, grace_seconds: float | None = None) -> None:
        if grace_seconds is not None and not grace_seconds > 0:
            raise ValueError(f"grace_seconds is {grace_seconds}; it must be above 0")
        self.grace_seconds = grace_seconds
        self._listener = Listener()
        self._undo: list[Callable[[], None]] = []
        self._recovery: CheckpointRecovery | None = None
        self._meetings = Meetings()
        self._count = 0  # of places at which the ranks could meet, since the meetings began
        self._met = (0, 0.0)  # the count and the time of the last meeting
        self._batches = self._common = inf  # of this pass: this rank's, and those that every rank has
        self._pass_began = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """From here on, answers the signals."""
        if getattr(trainer, "fast_dev_run", False):
            return
        make_forks_safe()
        part_before_exit()
        self._listener = Listener(impatient=not follows_lightnings_rank_zero())
        if not self._listener.listen():
            rank_zero_warn("Preemption answers no signal: Python allows it in the main thread only")
            return
        self._undo = [
            self._listener.stop,
            internals.leave_signals_alone(trainer),
            internals.call_with_loaders(trainer, self._deafen),
            internals.call_on_exception(trainer, self._end),
        ]
        if stage == "fit":
            self._recovery = find_callback(trainer, CheckpointRecovery)
            if self._recovery is None:
                raise NotResumableError(
                    "Preemption saves nothing by itself: put a CheckpointRecovery among the callbacks, or take "
                    "Preemption out"
                )
            self._undo.append(self._recovery.call_at_steps(self._at_step))
            self._begin_meetings()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the batches that all ranks have."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin_pass(trainer, batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the batches that all ranks have."""
        self._begin_pass(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the batches that all ranks have."""
        self._begin_pass(trainer, trainer.num_predict_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leaves if a rank was told to."""
        self._in_pass(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leaves if a rank was told to."""
        self._in_pass(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leaves if a rank was told to."""
        self._in_pass(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts steps again."""
        self._begin_meetings()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves if a rank was told to at the very end, when all was committed; else gives the signals back."""
        asked = self._asked(trainer) if self._undo else None
        self._end()
        if asked is not None:
            self._leave(trainer, asked, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._end()

    def _inactive(self) -> dict[str, Any]:
        return {"_listener": Listener(), "_undo": [], "_recovery": None}

    def _at_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self._recovery is not None
        asked = self._asked_at_meeting(trainer)
        if asked is not None:
            self._warn_if_it_takes_too_long(asked)
            self._leave(trainer, asked, self._recovery.commit(trainer, module))

    def _begin_pass(self, trainer: pl.Trainer, batches: Any) -> None:
        if self._undo:
            counted = internals.evaluates_in_sequence(trainer)  # else the sum says nothing
            self._batches = float(sum(batches) if isinstance(batches, list) else batches) if counted else inf
            common = -largest([-self._batches], trainer.strategy.root_device)[0]
            self._common = common if trainer.world_size == 1 or common < inf else 0  # who has ended meets nobody
            self._pass_began = time.monotonic()
            self._begin_meetings()

    def _in_pass(self, trainer: pl.Trainer) -> None:
        if not self._undo or self._count >= self._common:
            return
        asked = self._asked_at_meeting(trainer)
        if asked is None or (trainer.state.fn == "fit" and not trainer.sanity_checking and self._fits(trainer, asked)):
            return
        trains = self._recovery is not None and not trainer.sanity_checking
        self._leave(trainer, asked, self._recovery.saving.settle() if self._recovery and trains else None)

    def _begin_meetings(self) -> None:
        self._meetings.begin()
        self._count, self._met = 0, (0, time.monotonic())

    def _asked_at_meeting(self, trainer: pl.Trainer) -> signal.Signals | None:
        self._count += 1
        if trainer.world_size == 1:
            return self._listener.received
        if not self._meetings.is_due(self._count):
            return None
        count, then = self._met
        now = time.monotonic()
        number, seconds = self._largest(trainer, (now - then) / (self._count - count))
        self._meetings.met(self._count, seconds)
        self._met = self._count, now
        return signal.Signals(number) if number else None

    def _asked(self, trainer: pl.Trainer) -> signal.Signals | None:
        number, _ = self._largest(trainer, 0.0)
        return signal.Signals(number) if number else None

    def _largest(self, trainer: pl.Trainer, seconds: float) -> tuple[int, float]:
        """The signal that a rank received, 0 for none, and the most of their ``seconds``."""
        mine = 0 if self._listener.received is None else self._listener.received
        number, most = largest([mine, seconds], trainer.strategy.root_device)
        return int(number), most

    def _fits(self, trainer: pl.Trainer, asked: signal.Signals) -> bool:
        """Whether the rest of this validation and a checkpoint take no longer than what is left, on every rank."""
        pace = (time.monotonic() - self._pass_began) / self._count
        need = pace * (self._batches - self._count) + self._write_seconds()
        return largest([need - self._remaining(asked, os.environ)], trainer.strategy.root_device)[0] <= 0

    def _warn_if_it_takes_too_long(self, asked: signal.Signals) -> None:
        left, needed = self._remaining(asked, os.environ), self._write_seconds()
        if needed > left:
            rank_zero_warn(
                f"a checkpoint takes {needed:.0f} s to write, and {left:.0f} s are left before {asked.name} is "
                "followed by a kill: what was committed before is kept in any case"
            )

    def _write_seconds(self) -> float:
        """How long the last checkpoint took to write, as far as this rank knows."""
        writer = self._recovery.saving.writer if self._recovery else None
        return 0.0 if writer is None or writer.seconds is None else writer.seconds

    def _remaining(self, asked: signal.Signals, environ: Mapping[str, str]) -> float:
        """The seconds that are left of the grace; of a rank that heard no signal, as if it had just come."""
        since = time.monotonic() - self._listener.at if self._listener.received is not None else 0.0
        if self.grace_seconds is not None:
            return self.grace_seconds - since
        ahead = asked in {signal.SIGUSR1, signal.SIGUSR2} and "SLURM_JOB_END_TIME" in environ
        until_the_end = float(environ["SLURM_JOB_END_TIME"]) - time.time() if ahead else 0.0
        return max(GRACE_SECONDS - since, until_the_end)

    def _deafen(self, loader: Any) -> None:
        self._undo.append(deafen(loader))

    def _leave(self, trainer: pl.Trainer, asked: signal.Signals, saved: int | None) -> None:
        stage = trainer.state.stage
        what = "the same command goes on" if saved is None else f"the same command goes on from step {saved}"
        rank_zero_info(f"{asked.name}: left in {stage.value if stage else 'the end'}; {what}")
        raise PreemptedExit(asked.name, leads=trainer.is_global_zero)

    def _end(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._recovery = None

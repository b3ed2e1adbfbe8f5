"""A training that is told to end leaves at a place from which it goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback

from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.distributed.collectives import all_reduce_max
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.distributed.rank import is_started_by_rank_zero
from stormproof.distributed.sync_schedule import SyncSchedule
from stormproof.errors import NotResumableError, PreemptedExit
from stormproof.event_log import log_event
from stormproof.lightning import internals
from stormproof.lightning.find_callback import find_callback
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.signals.listener import SignalListener
from stormproof.signals.worker_signal_mask import mask_worker_signals

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
        self._listener = SignalListener()
        self._undo_functions: list[Callable[[], None]] = []
        self._recovery: CheckpointRecovery | None = None
        self._sync_schedule = SyncSchedule()
        self._num_sync_points = 0  # number of possible synchronization points since the last reset
        self._last_sync = (0, 0.0)  # sync point and time of the last synchronization
        self._num_batches = self._num_common_batches = inf  # of this pass: this rank's, and those that every rank has
        self._evaluation_start_time = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """From here on, answers the signals."""
        if getattr(trainer, "fast_dev_run", False):
            return
        make_forks_safe()
        destroy_gloo_before_exit()
        self._listener = SignalListener(raise_on_second_sigint=not is_started_by_rank_zero())
        if not self._listener.listen():
            rank_zero_warn("Preemption answers no signal: Python allows it in the main thread only")
            return
        self._undo_functions = [
            self._listener.stop,
            internals.disable_signal_handling(trainer),
            internals.call_with_loaders(trainer, self._mask_worker_signals),
            internals.call_on_exception(trainer, self._release),
        ]
        if stage == "fit":
            self._recovery = find_callback(trainer, CheckpointRecovery)
            if self._recovery is None:
                raise NotResumableError(
                    "Preemption saves nothing by itself: put a CheckpointRecovery among the callbacks, or take "
                    "Preemption out"
                )
            self._undo_functions.append(self._recovery.call_at_steps(self._check_signal_at_step))
            self._reset_sync_schedule()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the batches that all ranks have."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin_evaluation(trainer, batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the batches that all ranks have."""
        self._begin_evaluation(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the batches that all ranks have."""
        self._begin_evaluation(trainer, trainer.num_predict_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leaves if a rank was told to."""
        self._check_signal_in_evaluation(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leaves if a rank was told to."""
        self._check_signal_in_evaluation(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leaves if a rank was told to."""
        self._check_signal_in_evaluation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts steps again."""
        self._reset_sync_schedule()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves if a rank was told to at the very end, when all was committed; else gives the signals back."""
        received_signal = self._sync_signal(trainer) if self._undo_functions else None
        self._release()
        if received_signal is not None:
            self._exit(trainer, received_signal, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._release()

    def _inactive_state(self) -> dict[str, Any]:
        return {"_listener": SignalListener(), "_undo_functions": [], "_recovery": None}

    def _check_signal_at_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self._recovery is not None
        received_signal = self._poll_signal(trainer)
        if received_signal is not None:
            self._warn_if_save_exceeds_grace(received_signal)
            self._exit(trainer, received_signal, self._recovery.commit(trainer, module))

    def _begin_evaluation(self, trainer: pl.Trainer, batches: Any) -> None:
        if self._undo_functions:
            is_countable = internals.evaluates_in_sequence(trainer)  # else the sum says nothing
            self._num_batches = float(sum(batches) if isinstance(batches, list) else batches) if is_countable else inf
            num_common_batches = -all_reduce_max([-self._num_batches], trainer.strategy.root_device)[0]
            self._num_common_batches = (
                num_common_batches if trainer.world_size == 1 or num_common_batches < inf else 0
            )  # who has ended meets nobody
            self._evaluation_start_time = time.monotonic()
            self._reset_sync_schedule()

    def _check_signal_in_evaluation(self, trainer: pl.Trainer) -> None:
        if not self._undo_functions or self._num_sync_points >= self._num_common_batches:
            return
        received_signal = self._poll_signal(trainer)
        if received_signal is None or (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and self._has_time_to_finish(trainer, received_signal)
        ):
            return
        is_training = self._recovery is not None and not trainer.sanity_checking
        self._exit(
            trainer,
            received_signal,
            self._recovery.save_coordinator.wait_until_committed() if self._recovery and is_training else None,
        )

    def _reset_sync_schedule(self) -> None:
        self._sync_schedule.reset()
        self._num_sync_points, self._last_sync = 0, (0, time.monotonic())

    def _poll_signal(self, trainer: pl.Trainer) -> signal.Signals | None:
        self._num_sync_points += 1
        if trainer.world_size == 1:
            return self._listener.received_signal
        if not self._sync_schedule.is_due(self._num_sync_points):
            return None
        last_sync_point, last_sync_time = self._last_sync
        now = time.monotonic()
        signal_number, seconds = self._reduce_signal(
            trainer, (now - last_sync_time) / (self._num_sync_points - last_sync_point)
        )
        self._sync_schedule.record_sync(self._num_sync_points, seconds)
        self._last_sync = self._num_sync_points, now
        return signal.Signals(signal_number) if signal_number else None

    def _sync_signal(self, trainer: pl.Trainer) -> signal.Signals | None:
        signal_number, _ = self._reduce_signal(trainer, 0.0)
        return signal.Signals(signal_number) if signal_number else None

    def _reduce_signal(self, trainer: pl.Trainer, seconds: float) -> tuple[int, float]:
        """The signal that a rank received, 0 for none, and the most of their ``seconds``."""
        local_signal = 0 if self._listener.received_signal is None else self._listener.received_signal
        signal_number, max_seconds = all_reduce_max([local_signal, seconds], trainer.strategy.root_device)
        return int(signal_number), max_seconds

    def _has_time_to_finish(self, trainer: pl.Trainer, received_signal: signal.Signals) -> bool:
        """Whether the rest of this validation and a checkpoint take no longer than what is left, on every rank."""
        seconds_per_batch = (time.monotonic() - self._evaluation_start_time) / self._num_sync_points
        needed_seconds = seconds_per_batch * (self._num_batches - self._num_sync_points) + self._get_write_seconds()
        return (
            all_reduce_max(
                [needed_seconds - self._compute_remaining_seconds(received_signal, os.environ)],
                trainer.strategy.root_device,
            )[0]
            <= 0
        )

    def _warn_if_save_exceeds_grace(self, received_signal: signal.Signals) -> None:
        remaining_seconds, write_seconds = (
            self._compute_remaining_seconds(received_signal, os.environ),
            self._get_write_seconds(),
        )
        if write_seconds > remaining_seconds:
            rank_zero_warn(
                f"a checkpoint takes {write_seconds:.0f} s to write, and {remaining_seconds:.0f} s are left before "
                f"{received_signal.name} is "
                "followed by a kill: what was committed before is kept in any case"
            )

    def _get_write_seconds(self) -> float:
        """How long the last checkpoint took to write, as far as this rank knows."""
        writer = self._recovery.save_coordinator.writer if self._recovery else None
        return 0.0 if writer is None or writer.write_seconds is None else writer.write_seconds

    def _compute_remaining_seconds(self, received_signal: signal.Signals, environ: Mapping[str, str]) -> float:
        """The seconds that are left of the grace; of a rank that heard no signal, as if it had just come."""
        elapsed_seconds = (
            time.monotonic() - self._listener.received_at if self._listener.received_signal is not None else 0.0
        )
        if self.grace_seconds is not None:
            return self.grace_seconds - elapsed_seconds
        is_early_slurm_signal = received_signal in {signal.SIGUSR1, signal.SIGUSR2} and "SLURM_JOB_END_TIME" in environ
        remaining_job_seconds = float(environ["SLURM_JOB_END_TIME"]) - time.time() if is_early_slurm_signal else 0.0
        return max(GRACE_SECONDS - elapsed_seconds, remaining_job_seconds)

    def _mask_worker_signals(self, loader: Any) -> None:
        self._undo_functions.append(mask_worker_signals(loader))

    def _exit(self, trainer: pl.Trainer, received_signal: signal.Signals, saved_step: int | None) -> None:
        stage = trainer.state.stage
        resume_message = (
            "the same command goes on" if saved_step is None else f"the same command goes on from step {saved_step}"
        )
        stage_name = stage.value if stage else "the end"
        log_event(__name__, f"{received_signal.name}: left in {stage_name}; {resume_message}")
        raise PreemptedExit(received_signal.name, is_rank_zero=trainer.is_global_zero)

    def _release(self) -> None:
        while self._undo_functions:
            self._undo_functions.pop()()
        self._recovery = None

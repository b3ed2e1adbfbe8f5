"""Saves a checkpoint and exits after a termination signal."""

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

from stormproof.arguments import check_arguments
from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.distributed.collectives import all_reduce_max
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.distributed.rank import is_started_by_rank_zero
from stormproof.errors import NotResumableError, PreemptedExit
from stormproof.event_log import log_event
from stormproof.lightning import internals
from stormproof.lightning.find_callback import find_callback, require_single
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.step_exchange import ExchangedNumbers, StepExchange
from stormproof.signals.listener import SignalListener
from stormproof.signals.worker_signal_mask import mask_worker_signals

GRACE_SECONDS = 30.0
"""Seconds between a termination signal and SIGKILL: the default of SLURM, Kubernetes and torchrun."""
EXIT_SECONDS = 5.0
"""Seconds before SIGKILL at which waits for storage end. The run then needs time to exit: about 1.5 s to end the
interpreter and 1 s for a mirror that hangs, and more if the machine is busy."""


class Preemption(InactiveCopies, Callback):
    """Saves on all ranks and exits after SIGTERM, SIGINT, SIGUSR1 or SIGUSR2. Rank 0 exits with code 75.

    The signal may reach one rank or all ranks. About once per second, between two steps, the ranks agree on whether one
    has arrived. :class:`stormproof.CheckpointRecovery`, a required callback, then commits a checkpoint of that step.
    When it is committed, ``fit`` raises :class:`stormproof.PreemptedExit` on all ranks. The same command resumes from
    this step with bitwise identical results.

    - A validation continues to its end if there is enough time for it and for saving. Otherwise it stops between two
      batches, and the run resumes from the last committed checkpoint.
    - A sanity check, a test and a prediction stop between two batches. With several ranks, this requires that all ranks
      know their number of batches; otherwise they stop after their end.

    While the callback is active, it replaces all other handlers of these signals, including Lightning's. Lightning
    therefore does not requeue a SLURM job: the job script must, if the exit code is 75. Forked loader workers ignore
    the signals (Linux only). A second Ctrl-C at least one second after the first exits without saving.

    Args:
        grace_seconds: Seconds from the signal until SIGKILL. Must be above 0. By default 30, or the remaining time of
            the SLURM job if that is longer and the signal is SIGUSR1 or SIGUSR2, which SLURM sends in advance. If
            saving takes longer, the callback warns and tries to save.

    Raises:
        ValueError: If ``grace_seconds`` is not above 0.
        NotResumableError: In ``setup``, if the trainer has no :class:`stormproof.CheckpointRecovery`.
        PreemptedExit: In ``fit``, ``validate``, ``test`` and ``predict``, after a signal.

    Example:
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints")
        >>> trainer = pl.Trainer(callbacks=[Preemption(grace_seconds=60), recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())  # doctest: +SKIP

    References:
        https://lightning.ai/docs/pytorch/stable/clouds/cluster_advanced.html
        https://slurm.schedmd.com/sbatch.html (``--signal``)
    """

    @check_arguments(grace_seconds="above 0")
    def __init__(self, grace_seconds: float | None = None) -> None:
        self.grace_seconds = grace_seconds
        self._listener = SignalListener()
        self._undo_functions: list[Callable[[], None]] = []
        self._recovery: CheckpointRecovery | None = None
        self._exchanged_signal: ExchangedNumbers | None = None
        self._sync_schedule = SyncSchedule()
        self._num_sync_points = 0  # number of possible synchronization points since the last reset
        self._last_sync = (0, 0.0)  # sync point and time of the last synchronization
        self._num_batches = self._num_common_batches = inf  # of this evaluation: on this rank and on every rank
        self._evaluation_start_time = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Installs the signal handlers."""
        if getattr(trainer, "fast_dev_run", False):
            return
        require_single(trainer, self)
        make_forks_safe()
        destroy_gloo_before_exit()
        self._listener = SignalListener(raise_on_second_sigint=not is_started_by_rank_zero())
        if not self._listener.listen():
            rank_zero_warn("Preemption is inactive: Python allows signal handlers in the main thread only")
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
                    "Preemption requires CheckpointRecovery: add CheckpointRecovery to the callbacks or remove "
                    "Preemption"
                )
            self._undo_functions.append(self._recovery.call_at_steps(self._check_signal_at_step))
            self._exchanged_signal = StepExchange.of(trainer).add(self._local_signal)
            self._undo_functions.append(self._exchanged_signal.remove)
            self._reset_sync_schedule()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Determines the number of batches that every rank has."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin_evaluation(trainer, batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Determines the number of batches that every rank has."""
        self._begin_evaluation(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Determines the number of batches that every rank has."""
        self._begin_evaluation(trainer, trainer.num_predict_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Exits if a rank has received a signal."""
        self._check_signal_in_evaluation(trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resets the schedule, which counts training steps again."""
        self._reset_sync_schedule()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the signal handlers. Exits if a signal arrived at the end, when everything is committed."""
        received_signal = self._sync_signal(trainer) if self._undo_functions else None
        self._release()
        if received_signal is not None:
            self._exit(trainer, received_signal, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restores the signal handlers."""
        self._release()

    def _inactive_state(self) -> dict[str, Any]:
        return {"_listener": SignalListener(), "_undo_functions": [], "_recovery": None, "_exchanged_signal": None}

    def _check_signal_at_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Commits a checkpoint and exits if a rank has received a signal."""
        assert self._recovery is not None
        assert self._exchanged_signal is not None
        received_signal = self._poll_signal(trainer, self._exchanged_signal.take())
        if received_signal is not None:
            self._warn_if_save_exceeds_grace(received_signal)
            seconds = self._compute_remaining_seconds(received_signal, os.environ) - EXIT_SECONDS
            saved_step = self._recovery.commit(trainer, module, seconds)
            self._finish_mirror(received_signal)
            self._exit(trainer, received_signal, saved_step)

    def _begin_evaluation(self, trainer: pl.Trainer, batches: Any) -> None:
        """Determines the number of batches and starts the time measurement of an evaluation."""
        if self._undo_functions:
            is_countable = internals.evaluates_in_sequence(trainer)  # otherwise the sum is not the number of batches
            self._num_batches = float(sum(batches) if isinstance(batches, list) else batches) if is_countable else inf
            num_common_batches = -all_reduce_max([-self._num_batches], trainer.strategy.root_device)[0]
            self._num_common_batches = (
                num_common_batches if trainer.world_size == 1 or num_common_batches < inf else 0
            )  # a rank that has finished takes part in no collective
            self._evaluation_start_time = time.monotonic()
            self._reset_sync_schedule()

    def _check_signal_in_evaluation(self, trainer: pl.Trainer) -> None:
        """Exits if a rank has received a signal, unless there is time to finish the validation."""
        if not self._undo_functions or self._num_sync_points >= self._num_common_batches:
            return
        received_signal = self._poll_signal(trainer)
        if received_signal is None or (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and self._has_time_to_finish(trainer, received_signal)
        ):
            return
        saved_step = None
        if self._recovery is not None and not trainer.sanity_checking:
            seconds = self._compute_remaining_seconds(received_signal, os.environ) - EXIT_SECONDS
            saved_step = self._recovery.save_coordinator.wait_until_committed(seconds)
            self._finish_mirror(received_signal)
        self._exit(trainer, received_signal, saved_step)

    def _reset_sync_schedule(self) -> None:
        self._sync_schedule.reset()
        self._num_sync_points, self._last_sync = 0, (0, time.monotonic())

    def _poll_signal(self, trainer: pl.Trainer, gathered: list[list[float]] | None = None) -> signal.Signals | None:
        """Returns the signal that a rank has received, if ranks synchronize at this point. Otherwise None.

        Args:
            trainer: Trainer in any stage.
            gathered: Results of :meth:`_local_signal` on all ranks if another callback gathered them after the last
                batch, else None.
        """
        self._num_sync_points += 1
        if trainer.world_size == 1:
            return self._listener.received_signal
        if gathered is None and not self._sync_schedule.is_due(self._num_sync_points):
            return None
        now = time.monotonic()
        signal_number, seconds = self._reduce_signal(trainer) if gathered is None else map(max, *gathered)
        self._sync_schedule.record_sync(self._num_sync_points, seconds / (self._num_sync_points - self._last_sync[0]))
        self._last_sync = self._num_sync_points, now
        return signal.Signals(int(signal_number)) if signal_number else None

    def _sync_signal(self, trainer: pl.Trainer) -> signal.Signals | None:
        """Synchronizes all ranks and returns the signal that a rank has received, or None."""
        signal_number, _ = self._reduce_signal(trainer)
        return signal.Signals(int(signal_number)) if signal_number else None

    def _reduce_signal(self, trainer: pl.Trainer) -> list[float]:
        """Returns the maxima of :meth:`_local_signal` over all ranks."""
        return all_reduce_max(self._local_signal(), trainer.strategy.root_device)

    def _local_signal(self) -> list[float]:
        """Returns the number of the received signal (0 if none), and the seconds since the last synchronization."""
        return [float(self._listener.received_signal or 0), time.monotonic() - self._last_sync[1]]

    def _has_time_to_finish(self, trainer: pl.Trainer, received_signal: signal.Signals) -> bool:
        """Returns True if every rank has time for the rest of this validation and for a checkpoint."""
        seconds_per_batch = (time.monotonic() - self._evaluation_start_time) / self._num_sync_points
        needed_seconds = seconds_per_batch * (self._num_batches - self._num_sync_points) + self._get_write_seconds()
        return (
            all_reduce_max(
                [needed_seconds - self._compute_remaining_seconds(received_signal, os.environ)],
                trainer.strategy.root_device,
            )[0]
            <= 0
        )

    def _finish_mirror(self, received_signal: signal.Signals) -> None:
        """Waits for the upload of the newest checkpoint until 5 s before SIGKILL."""
        assert self._recovery is not None
        remaining_seconds = self._compute_remaining_seconds(received_signal, os.environ)
        self._recovery.finish_mirror(remaining_seconds - EXIT_SECONDS)

    def _warn_if_save_exceeds_grace(self, received_signal: signal.Signals) -> None:
        """Warns if a checkpoint probably takes longer than the time until SIGKILL."""
        remaining_seconds, write_seconds = (
            self._compute_remaining_seconds(received_signal, os.environ),
            self._get_write_seconds(),
        )
        if write_seconds > remaining_seconds:
            rank_zero_warn(
                f"Writing a checkpoint takes {write_seconds:.0f} s, but only {remaining_seconds:.0f} s remain between "
                f"{received_signal.name} and SIGKILL. If it is not finished in time, the run resumes from the last "
                "committed checkpoint."
            )

    def _get_write_seconds(self) -> float:
        """Returns the duration of the last write of a checkpoint on this rank, or 0."""
        writer = self._recovery.save_coordinator.writer if self._recovery else None
        return 0.0 if writer is None or writer.write_seconds is None else writer.write_seconds

    def _compute_remaining_seconds(self, received_signal: signal.Signals, environ: Mapping[str, str]) -> float:
        """Returns the seconds until SIGKILL. A rank without a signal assumes that it has just arrived."""
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
        """Logs how to resume and raises PreemptedExit."""
        stage = trainer.state.stage
        resume_message = (
            "the same command resumes the run"
            if saved_step is None
            else f"the same command resumes from step {saved_step}"
        )
        stage_name = stage.value if stage else "the end"
        log_event(__name__, f"{received_signal.name}: stopped in {stage_name}; {resume_message}")
        raise PreemptedExit(received_signal.name, is_rank_zero=trainer.is_global_zero)

    def _release(self) -> None:
        """Undoes everything that ``setup`` installed."""
        while self._undo_functions:
            self._undo_functions.pop()()
        self._recovery = None


class SyncSchedule:
    """Schedules a synchronization about once per second, or in every step if a step takes longer.

    Each synchronization determines the next one from the slowest rank's time per step since the last one. The interval
    in steps grows at most by a factor of 2. Otherwise, a time that is not typical of a step, as before the first step
    or after a validation, could lead to 50 long steps without a synchronization.

    Args:
        interval_seconds: Seconds between synchronizations. Must be above 0.
        max_interval_steps: Maximum number of steps between synchronizations, because later steps may take longer. Must
            be at least 1.

    Example:
        >>> schedule = SyncSchedule()
        >>> schedule.is_due(step=1)
        True
        >>> steps = []
        >>> for step in range(1, 30):
        ...     if schedule.is_due(step):
        ...         steps.append(step)
        ...         schedule.record_sync(step, seconds_per_step=0.1)
        >>> steps
        [1, 3, 7, 15, 25]
    """

    def __init__(self, interval_seconds: float = 1.0, max_interval_steps: int = 50) -> None:
        self._interval_seconds, self._max_interval_steps = interval_seconds, max_interval_steps
        self._last_step = self._next_step = 0

    def reset(self) -> None:
        """Schedules a synchronization for the next step, and counts steps from 0 again."""
        self._last_step = self._next_step = 0

    def is_due(self, step: int) -> bool:
        """Returns whether to synchronize at ``step``, which must be equal on all ranks."""
        return step >= self._next_step

    def record_sync(self, step: int, seconds_per_step: float) -> None:
        """Records a synchronization at ``step``.

        Args:
            step: Current step, equal on all ranks.
            seconds_per_step: Time per step of the slowest rank since the last synchronization, equal on all ranks.
        """
        interval_steps = self._interval_seconds / seconds_per_step if seconds_per_step > 0 else self._max_interval_steps
        self._next_step = step + max(
            1, min(int(interval_steps), self._max_interval_steps, 2 * (step - self._last_step))
        )
        self._last_step = step

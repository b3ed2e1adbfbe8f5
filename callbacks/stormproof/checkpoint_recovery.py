"""Checkpoints that are verified, and from which training goes on bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback

from stormproof.checkpoint import Checkpoint, Resolution, Retention, Store
from stormproof.checkpoint.async_writer import CheckpointWriter
from stormproof.checkpoint.folder_ownership import FolderOwnership, verify_shared_folder
from stormproof.checkpoint.loadable import restore_pickled
from stormproof.checkpoint.monitored_metric import MonitoredMetric
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.resolution import BadCheckpoint
from stormproof.checkpoint.schedule import SaveSchedule
from stormproof.distributed.collectives import assert_equal, run_on_rank_zero
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.errors import NotResumableError
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.resume import snapshot
from stormproof.resume.compatibility import check_initialized, check_loop, check_strategy, find_resume_caveats
from stormproof.resume.goodput import Goodput
from stormproof.resume.save_coordinator import SaveCoordinator
from stormproof.resume.unsaved_attributes import UnsavedAttributes
from stormproof.resume.wrapped_loaders import wrap_training_loaders

_FINISHED_FOLDERS: set[Path] = set()
"""Folders of training runs that have finished in this process."""


class CheckpointRecovery(InactiveCopies, Callback):
    """Saves what an exact resume needs, verified, and finds it again.

    A checkpoint is a plain Lightning ``.ckpt`` and a manifest ``.json`` beside it, which is written last and protects
    itself. It is taken between two batches that a step lies between, after every other callback's hooks and after the
    validation and the epoch end that the step brought about. Resumed from it, a run ends with the weights, bit for bit,
    that it would have ended with: parameters, optimizer, schedules, random number generators of every rank, running
    metrics and means, position in the data (of a :func:`stormproof.resumable` loader).

    Adding the callback changes no bit of a run that is not interrupted. Training stands still while the state is copied
    into host memory, as much again as a checkpoint has, and goes on while it is written. Where storage fails it goes on
    too, and says so.

    The first checkpoint is saved before the first batch. A run that is killed later can resume, even without a seed,
    and ``DivergenceGuard`` can roll back to a healthy state. As with ``trainer.save_checkpoint`` and Lightning's tuner,
    ``on_save_checkpoint`` hooks are therefore also called at step 0, before any optimizer step.

    Hyperparameters that ``torch.load(weights_only=True)`` refuses are left out of checkpoints, with one warning. Their
    ``repr`` is in ``torch.load(path)["stormproof"]["left_out"]``. Refused entries that your ``on_save_checkpoint`` adds
    are stored pickled. To restore them, call
    ``trainer.fit(..., ckpt_path=recovery.latest_checkpoint(), weights_only=False)``. Unpickling can execute code from
    the file.

    Warns about attributes of the module and of callbacks that change during training but are not in the checkpoint.
    List exceptions in the class attribute ``not_restored``.

    Args:
        dirpath: where checkpoints go; made if it is not there. One run, one folder, the same on all ranks.
        every_n_train_steps: optimizer steps from one checkpoint to the next, at least 1; None for no such rule.
        train_time_interval: Time between checkpoints by rank 0's clock, as a timedelta or in minutes. Must be above 0.
            Disabled if None. If ``every_n_train_steps`` is None too, every 5 minutes. The state before the first batch
            and the final state are always saved.
        max_overhead: in the place of both: the share of the training's time that may be spent standing still, in
            (0, 1); the minutes follow from how long it stood still the last time.
        mean_hours_between_failures: of the whole job, above 0; with ``max_overhead``, the minutes are no fewer than
            those which lose the least time to saving and failures together (Daly 2006).
        keep_last: checkpoints to keep, at least 2.
        monitor: a logged validation metric; the state behind each of its ``save_top_k`` best values is saved and kept.
        mode: whether small (``min``) or large (``max``) values of it are good.
        save_top_k: how many of them, at least 1.
        keep_every_n_train_steps: a checkpoint at or after each multiple of it is kept for ever; None for none.
        identity: what the run is, in words or a hash; written into the manifests, and compared with them.
        async_save: whether training goes on while a checkpoint is written.
        storage_timeout: Time without a successful save after which training stops with exit code 74, as a timedelta or
            in minutes. Must be above 0.
        wrap_loaders: Whether to wrap the training loaders with :func:`stormproof.resumable`. Set it if a package
            creates the loaders. This changes the order of the batches, as ``resumable`` does.
        resume: Whether ``fit`` resumes from :meth:`latest_checkpoint` if it is called without ``ckpt_path``. Set it if
            a package calls ``fit``. After a finished run, another ``fit`` in the same process and folder is refused.
        weights_only: Passed on when ``resume`` loads a checkpoint, as in ``Trainer.fit``. False restores pickled
            entries.

    Attributes:
        resumed_from: Checkpoint that :meth:`latest_checkpoint` found. None before, or if there is none.
        skipped_checkpoints: Newer checkpoints that :meth:`latest_checkpoint` skipped with a warning, because they are
            damaged or unreadable.
        last_logged: what was logged last, by name; empty before.
        save_coordinator: when and how it saves; its ``writer`` is there on rank 0 while it trains.

    Raises:
        ValueError: if a number is out of its range, or ``dirpath`` is the address of an object store.

    Example:
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints", every_n_train_steps=50)
        >>> trainer = pl.Trainer(callbacks=[recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())  # doctest: +SKIP
    """

    def __init__(
        self,
        dirpath: str | Path,
        *,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | float | None = None,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        keep_every_n_train_steps: int | None = None,
        identity: str | None = None,
        max_overhead: float | None = None,
        mean_hours_between_failures: float | None = None,
        async_save: bool = True,
        storage_timeout: timedelta | float = 30.0,
        wrap_loaders: bool = False,
        resume: bool = False,
        weights_only: bool | None = None,
    ) -> None:
        if monitor is not None and save_top_k < 1:
            raise ValueError(f"save_top_k is {save_top_k}; to keep the best by {monitor} it must be at least 1")
        timeout_minutes = _to_minutes(storage_timeout)
        if not timeout_minutes > 0:
            raise ValueError(f"storage_timeout is {storage_timeout}; it must be above 0")
        self.schedule = SaveSchedule(
            every_n_train_steps,
            None if train_time_interval is None else _to_minutes(train_time_interval),
            keep_every_n_train_steps,
            max_overhead,
            mean_hours_between_failures,
        )
        self.monitored_metric = MonitoredMetric(monitor)
        self.retention = Retention(keep_last, save_top_k if monitor else 0, mode, keep_every_n_train_steps)
        self.identity = identity
        self.async_save, self.storage_timeout_seconds = async_save, 60 * timeout_minutes
        self.wrap_loaders, self.resume, self.weights_only = wrap_loaders, resume, weights_only
        self.store = Store(dirpath)
        self.save_coordinator = SaveCoordinator(
            self.store, self.schedule, self.retention, self.monitored_metric, identity
        )
        self.resumed_from: Checkpoint | None = None
        self.skipped_checkpoints: Sequence[BadCheckpoint] = ()
        self.last_logged: dict[str, float] = {}
        self._step_functions: list[Callable[[pl.Trainer, pl.LightningModule], None]] = []
        self._before_save_functions: list[Callable[[pl.Trainer, pl.LightningModule], None]] = []
        self._goodput = Goodput(time.time())
        self._resolution: Resolution | None = None  # what this process found last
        self._start_over = False  # what :meth:`latest_checkpoint` was asked for
        self._is_active = self._has_ended = False
        # of the checkpoint that was loaded, until it is set back
        self._rank_snapshot: snapshot.RankSnapshot | None = None
        self._loaded_description: str | None = None
        self._last_step = 0  # the one that was reached when we last looked
        self._has_validated = False
        self._undo_functions: list[Callable[[], None]] = []  # what was changed in the trainer

    def latest_checkpoint(self, start_over: bool = False) -> str | None:
        """The newest good checkpoint: verified, its bytes read and its content looked at; None if there is none yet.

        It needs no trainer, takes no lease and changes nothing in the folder. Every rank calls it. Before training
        begins, the ranks check that they found the same checkpoint. Only one rank per node reads its content.

        Args:
            start_over: begin at step 0 even though there are checkpoints, all of them bad.

        Raises:
            NoGoodCheckpointError: if there are checkpoints and none of them is good.
            NotResumableError: if they are another run's: both have an ``identity``, and these differ.
        """
        self._start_over = start_over
        self._resolution = self.store.resolve()
        checkpoint = self.store.choose_checkpoint(self._resolution, start_over=start_over)
        self.skipped_checkpoints = self._resolution.skipped_checkpoints
        for bad_checkpoint in self.skipped_checkpoints:
            outcome = "stays in place" if bad_checkpoint.is_unreadable else "moves to quarantine/ when training starts"
            path = self.store.folder / f"{bad_checkpoint.name}.ckpt"
            rank_zero_warn(f"Skipping checkpoint {path}: {bad_checkpoint.reason}. The file {outcome}.")
        if checkpoint is not None and self.identity is not None and checkpoint.identity not in {None, self.identity}:
            if checkpoint.step > 0:
                raise NotResumableError(
                    f"{checkpoint.path} is of another run ({checkpoint.identity}, and this one is {self.identity}): "
                    f"use another "
                    "folder"
                )
            checkpoint = None  # another start that never took a step: there is nothing to lose
        self.resumed_from = checkpoint
        return None if checkpoint is None else str(checkpoint.path)

    def best_checkpoint(self) -> str | None:
        """The checkpoint with the best value of ``monitor`` so far, verified; None if there is none yet."""
        sorted_checkpoints = self.retention.sort_by_score(self.store.read_checkpoints())
        good_checkpoints = (checkpoint for checkpoint in sorted_checkpoints if self.store.verify(checkpoint) is None)
        return next((str(checkpoint.path) for checkpoint in good_checkpoints), None)

    def call_at_steps(self, function: Callable[[pl.Trainer, pl.LightningModule], None]) -> Callable[[], None]:
        """Has ``function`` called, on all ranks, before the first batch and between two that a step lies between.

        There :meth:`commit` can be called.

        Returns:
            What ends that.
        """
        self._step_functions.append(function)
        return lambda: self._step_functions.remove(function)

    def call_before_saving(self, function: Callable[[pl.Trainer, pl.LightningModule], None]) -> Callable[[], None]:
        """Has ``function`` called, on all ranks, where the state between two batches is about to be saved.

        It may still change that state, or raise.

        Returns:
            What ends that.
        """
        self._before_save_functions.append(function)
        return lambda: self._before_save_functions.remove(function)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves now, and does not wait; between two batches that a step lies between, on all ranks together."""
        if self._is_active:
            self._save(trainer, pl_module, time.monotonic())

    def commit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> int | None:
        """Saves now, and waits until it is committed; where :meth:`call_at_steps` calls, on all ranks together.

        Returns:
            The step of what was committed last, None if that was before this process began: it is an earlier one if
            this one is not finite.

        Raises:
            StormproofError: on every rank, with exit code 74, if it could not be saved.
        """
        if self.schedule.last_saved_step != trainer.global_step:
            self._save(trainer, pl_module, time.monotonic())
        return self.save_coordinator.wait_until_committed()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes sure that all ranks go on from the same state, and takes the folder."""
        self._undo_functions = [
            internals.patch_checkpoint_loading(trainer, self.store.folder, retry_read),
            internals.call_after_loading(trainer, partial(_prepare_checkpoint, trainer)),
            internals.call_on_exception(trainer, self._release),
        ]
        self._is_active = stage == "fit" and not getattr(trainer, "fast_dev_run", False)
        if not self._is_active:
            return
        check_strategy(trainer, "CheckpointRecovery needs a checkpoint that is one file")
        if self.wrap_loaders:
            self._undo_functions.append(wrap_training_loaders(trainer))
        if self.resume:
            self._resume(trainer)
        make_forks_safe()
        destroy_gloo_before_exit()
        resolution = self._resolution = self._resolution or self.store.resolve()
        checkpoint = resolution.chosen_checkpoint
        assert_equal(
            "the newest good checkpoint",
            None if checkpoint is None else f"{checkpoint.path.name} ({checkpoint.sha256[:12]})",
        )
        self._rank_snapshot = self._loaded_description = None
        self._has_validated = self._has_ended = False
        self.monitored_metric.reset()
        self.save_coordinator.unsaved_attributes = UnsavedAttributes()
        self.schedule.reset()
        verify_shared_folder(self.store.folder, run_on_rank_zero(lambda: self._acquire_folder(resolution)))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts this rank's own states in the place of rank 0's."""
        if not self._is_active or trainer.state.fn != "fit":
            return
        self._loaded_description = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
        if snapshot.KEY not in checkpoint:
            rank_zero_warn(
                "this checkpoint was not saved by CheckpointRecovery: random number generators, running means and the "
                "position in the data are not in it, so that this resume is not exact"
            )
            return
        rank_arguments = (trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        is_sharded = internals.gathers_checkpoints(trainer)
        self._rank_snapshot = snapshot.select_rank(checkpoint, *rank_arguments, collects_dtypes=not is_sharded)
        self._loaded_description += f", {self._rank_snapshot.snapshot.id}"
        if self.save_coordinator.writer is not None:
            self.save_coordinator.writer.set_baseline(checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses to begin at step 0 beside checkpoints, and to train ranks that loaded different states."""
        if self._is_active and not trainer.strategy.restore_checkpoint_after_setup:
            self._check_loaded_state(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on, looks after what lies between two batches."""
        if not self._is_active:
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            self._check_loaded_state(trainer)
        check_loop(trainer)
        check_initialized(pl_module)
        for reason in find_resume_caveats(trainer):
            rank_zero_warn(f"a resume will not be exact: {reason}")
        if self._rank_snapshot is not None:
            snapshot.check_world_size(trainer, self._rank_snapshot)
            trainer.should_stop = self._rank_snapshot.snapshot.job_state.should_stop
            internals.load_pending_loader_states(trainer)
        self._last_step = trainer.global_step
        self._goodput.start(time.time())
        self._undo_functions.append(
            internals.call_between_batches(trainer, lambda: self._run_between_batches(trainer, pl_module))
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes down how far the training came."""
        self._record_progress(trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers that the validation loaders have been iterated, be it in the sanity check."""
        self._has_validated = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers that there is a new value of the monitored metric."""
        self.monitored_metric.record_validation(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Commits the end of the training, after every callback's ``on_train_end``."""
        if self._is_active and self._rank_snapshot is not None:  # it had ended before
            snapshot.restore_final(trainer, pl_module, self._rank_snapshot)
            self._rank_snapshot = None
        elif self._is_active and self.schedule.has_saved:
            self.save_coordinator.save(
                trainer, pl_module, time.monotonic(), has_validated=self._has_validated, has_ended=True
            )
        self._has_ended = self._is_active

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the folder back."""
        if self._has_ended:
            _FINISHED_FOLDERS.add(self.store.folder.resolve())
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the folder back: what was committed is what there is to go on from."""
        self._release(is_interrupted=isinstance(exception, KeyboardInterrupt))

    def state_dict(self) -> dict[str, Any]:
        """The run's time, as plain numbers."""
        return {"time": self._goodput.state_dict(time.time())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._goodput.load_state_dict(state_dict["time"])

    def _resume(self, trainer: pl.Trainer) -> None:
        folder, path = self.store.folder.resolve(), self.latest_checkpoint(self._start_over)
        if path is None:
            _FINISHED_FOLDERS.discard(folder)  # it was emptied
        elif folder not in _FINISHED_FOLDERS:
            self._undo_functions.append(internals.resume_from(trainer, path, self.weights_only))

    def _inactive_state(self) -> dict[str, Any]:
        if not self._is_active:
            return {"_undo_functions": []}
        empty_lists: dict[str, Any] = {
            name: [] for name in ("_undo_functions", "_step_functions", "_before_save_functions")
        }
        nones = dict.fromkeys(("_rank_snapshot", "_loaded_description", "_resolution"))
        return {**empty_lists, **nones, "_is_active": False}

    def _check_loaded_state(self, trainer: pl.Trainer) -> None:
        assert_equal("the state they loaded", self._loaded_description)
        checkpoint = self._resolution.chosen_checkpoint if self._resolution else None
        if (
            checkpoint is not None
            and checkpoint.step > 0
            and self._loaded_description is None
            and trainer.global_step == 0
        ):
            folder = checkpoint.path.parent
            if self.resume:
                raise NotResumableError(
                    f"{folder} contains a finished training run of {checkpoint.step} steps: use another folder for "
                    f"each fit"
                )
            raise NotResumableError(
                f"{folder} holds a checkpoint of step {checkpoint.step}, and fit was given none: pass "
                "ckpt_path=recovery.latest_checkpoint(), or use another folder"
            )

    def _run_between_batches(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step, stall_start = trainer.global_step, time.monotonic()
        is_resuming = self._rank_snapshot is not None
        if self._rank_snapshot is not None:
            snapshot.restore(trainer, module, self._rank_snapshot)
            self._has_validated = self._rank_snapshot.rank_state.validated
            self._rank_snapshot = None
        self.save_coordinator.unsaved_attributes.observe(trainer)
        if is_resuming:
            self.schedule.record_save(step, time.monotonic())
            self._report_recovery(trainer, step)
            self._record_progress(step)
        elif not self.schedule.has_saved or (step != self._last_step and self.save_coordinator.is_due(trainer)):
            self._save(trainer, module, stall_start)
        elif step == self._last_step:  # gradients are being added up, which no checkpoint holds
            return
        self._last_step = step
        for function in tuple(self._step_functions):
            function(trainer, module)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, stall_start: float) -> None:
        for function in tuple(self._before_save_functions):
            function(trainer, module)
        stall = self.save_coordinator.save(trainer, module, stall_start, has_validated=self._has_validated)
        self._log(trainer, {"checkpoint/stall_seconds": stall})

    def _acquire_folder(self, resolution: Resolution) -> str:
        """Acquires the folder on rank 0 and returns the token of the ownership."""
        ownership = FolderOwnership(self.store, resolution)
        self.save_coordinator.writer = CheckpointWriter(
            self.store,
            self.retention,
            ownership,
            async_save=self.async_save,
            storage_timeout_seconds=self.storage_timeout_seconds,
        )
        return ownership.token

    def _record_progress(self, step: int) -> None:
        if self.save_coordinator.writer is not None:
            self.save_coordinator.writer.ownership.record_progress(step)

    def _report_recovery(self, trainer: pl.Trainer, step: int) -> None:
        """Tells the loggers what the interruption cost."""
        if self.save_coordinator.writer is None:
            return
        now = time.time()
        recovery_metrics = self.save_coordinator.writer.ownership.compute_recovery_metrics(step, now)
        self._log(trainer, {**recovery_metrics, "recovery/effective_time_ratio": self._goodput.ratio(now)})

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        self.last_logged |= metrics
        for logger in trainer.loggers:
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=trainer.global_step)

    def _release(self, *, is_interrupted: bool = False) -> None:
        self._goodput.stop(time.time())
        while self._undo_functions:
            self._undo_functions.pop()()
        if self.save_coordinator.writer is not None:
            self.save_coordinator.writer.close(is_interrupted=is_interrupted)
            self.save_coordinator.writer = None
        self._resolution = None
        self._is_active = False


def _prepare_checkpoint(trainer: pl.Trainer, checkpoint: dict[str, Any], weights_only: bool | None) -> None:
    """Prepares a checkpoint, and the module for it, before any ``on_load_checkpoint`` hook."""
    restore_pickled(checkpoint, weights_only)
    snapshot.restore_entries(checkpoint, trainer.global_rank, trainer.world_size)
    internals.ensure_double_precision(trainer)


def _to_minutes(time: timedelta | float) -> float:
    return time.total_seconds() / 60 if isinstance(time, timedelta) else time

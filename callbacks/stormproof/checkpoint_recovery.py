"""Saves verified checkpoints from which training resumes bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback

from stormproof.arguments import check_arguments
from stormproof.checkpoint import Checkpoint, Retention, Store
from stormproof.checkpoint.monitored_metric import MonitoredMetric
from stormproof.checkpoint.resolution import BadCheckpoint
from stormproof.checkpoint.schedule import SaveSchedule
from stormproof.checkpoint.storage import ObjectStorage, Storage, is_url
from stormproof.checkpoint.tiers import make_tiers
from stormproof.checkpoint.tiers.tier import Ranks
from stormproof.distributed.collectives import run_on_rank_zero
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.errors import DivergedError, NotResumableError, PreemptedExit
from stormproof.event_log import log_event
from stormproof.lightning import internals, sharded_averaging
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.layout import Layout
from stormproof.lightning.load_plan import LoadPlan
from stormproof.lightning.method_replacement import call_after
from stormproof.resumable_loader import wrap_training_loaders
from stormproof.resume import script_settings, sharded_state
from stormproof.resume.checkpoint_finder import CheckpointFinder
from stormproof.resume.compatibility import (
    DynamicShapes,
    check_data_parallelism,
    check_initialized,
    check_loop,
    check_strategy,
    find_resume_caveats,
)
from stormproof.resume.goodput import Goodput
from stormproof.resume.loaded_state import LoadedState, prepare_checkpoint
from stormproof.resume.save_coordinator import Destination, SaveCoordinator

FINISH_SECONDS = 540.0
"""Maximum time to wait for the tiers at the end of training, in seconds. Shorter than the default timeout of HangWatch,
600 s, because the other ranks wait for rank 0."""
RETRY_SECONDS = 20.0
"""Maximum time to retry one request to an object store, in seconds. Failed uploads are repeated."""
_FINISHED_LOCATIONS: set[str] = set()
"""Absolute paths or URLs of the checkpoints of training runs that have finished in this process."""


class CheckpointRecovery(InactiveCopies, Callback):
    """Saves verified checkpoints and finds the newest good one for an exact resume.

    A checkpoint is a plain Lightning ``.ckpt`` file and a ``.json`` manifest, which is written last and contains its
    own checksum. If parameters are sharded (``ModelParallelStrategy`` with ``save_distributed_checkpoint=True``), it is
    a folder to which each rank writes its shard. To average sharded parameters, put ``EMAWeightAveraging`` after this
    callback.

    It is captured between two batches after an optimizer step. By then, the hooks of all other callbacks have run, as
    have a validation and the end of the epoch if they are due. A resumed run ends with bit-identical weights. The
    checkpoint contains

    - parameters, optimizer states and learning-rate schedules,
    - random number generators of every rank,
    - metric states and epoch means of ``self.log``,
    - the position in the data of a :func:`stormproof.resumable` loader.

    The callback does not change the result of a run that is not interrupted. Training pauses while the state is copied
    into host memory, which needs room for one more checkpoint, and continues while it is written. If storage fails,
    training continues with a warning.

    The first checkpoint is saved before the first batch. A run that is killed early can therefore resume, even
    without a seed, and ``DivergenceGuard`` can roll back to a healthy state. As with ``trainer.save_checkpoint`` and
    Lightning's tuner, this calls ``on_save_checkpoint`` hooks at step 0, before any optimizer step.

    Hyperparameters that ``torch.load(weights_only=True)`` refuses are left out of checkpoints, with one warning. Their
    ``repr`` is in ``torch.load(path)["stormproof"]["left_out"]``. Refused entries that your ``on_save_checkpoint`` adds
    are stored pickled. To restore them, call
    ``trainer.fit(..., ckpt_path=recovery.latest_checkpoint(), weights_only=False)``. Unpickling can execute code from
    the file.

    Metrics in the trainer's loggers:

    | name | when | value |
    | --- | --- | --- |
    | ``checkpoint/stall_seconds`` | save | seconds that training waited |
    | ``recovery/restarts`` | resume | number of earlier attempts in this folder |
    | ``recovery/lost_steps`` | resume | optimizer steps to repeat |
    | ``recovery/seconds`` | resume | seconds since the last progress of the previous attempt |
    | ``recovery/effective_time_ratio`` | resume | share of time spent on steps of the result, in [0, 1] |

    Warnings of rank 0:

    | cause | consequence |
    | --- | --- |
    | A newer checkpoint is damaged or cannot be read. | The run resumes from an older one. |
    | A loader, sampler or callback has state that cannot be saved. | A resume will not be exact. |
    | An attribute changes but is not saved. Exempt it in the class attribute ``not_restored``. | A resume may differ. |
    | Storage fails, hangs or damages a checkpoint. | Training continues until ``storage_timeout``. |
    | A tensor has become NaN or infinite. | No checkpoint is committed until all are finite. |
    | ``torch.load(weights_only=True)`` refuses an entry. | The entry is pickled or left out. |
    | The mirror cannot be reached. | Training continues, and the upload is retried. |
    | The mirror lacks the newest checkpoint at the end. | The checkpoint is only in the folder. |

    The arguments after ``dirpath`` say when to save (to ``mean_hours_between_failures``), what to keep (to
    ``keep_every_n_train_steps``), where to keep copies (to ``memory_tier``), how to write, and how to resume.

    Args:
        dirpath: Folder of the checkpoints, the same on all ranks, or the URL of an object store, such as
            ``s3://bucket/run``, which requires the extra ``remote``, or a
            :class:`stormproof.checkpoint.storage.Storage`. A folder is created if it does not exist. Use one folder or
            prefix per run.
        every_n_train_steps: Optimizer steps between checkpoints. Must be at least 1. Disabled if None.
        train_time_interval: Time between checkpoints by rank 0's clock, as a timedelta or in minutes. Must be above 0.
            Disabled if None. The default is 5 minutes without ``every_n_train_steps`` and ``max_overhead``. The state
            before the first batch and the final state are always saved.
        max_overhead: Maximum share of time for which training may pause to save, in (0, 1). Disabled if None. The
            interval is the duration of the last pause divided by this share. Cannot be combined with
            ``every_n_train_steps`` or ``train_time_interval``.
        mean_hours_between_failures: Mean time between failures of the whole job, in hours. Must be above 0. Requires
            ``max_overhead``. The interval is then at least the one with the least expected loss of time (Daly 2006).
        keep_last: Number of the newest checkpoints to keep. Must be at least 2.
        monitor: Name of a logged validation metric. The checkpoints with its ``save_top_k`` best values are kept.
            Disabled if None.
        mode: Whether low (``min``) or high (``max``) values of ``monitor`` are better.
        save_top_k: Number of the best checkpoints to keep. Must be at least 1. Ignored without ``monitor``.
        keep_every_n_train_steps: Permanently keeps the first checkpoint at or after each multiple of this number of
            steps. Must be at least 1. Disabled if None.
        mirror: URL of an object store, such as ``s3://bucket/run``, or storage, to which committed checkpoints are
            copied in the background. If it has a newer good checkpoint than the folder, :meth:`latest_checkpoint`
            downloads it. Use one prefix per run. A URL requires the extra ``remote``. Requires a folder as ``dirpath``.
            Disabled if None.
        mirror_keep_last: Number of the newest checkpoints to keep in ``mirror``. Must be at least 2. The best and
            every n-th checkpoint are kept as in the folder.
        memory_tier: Whether to also copy the state to ``/dev/shm`` of rank 0's node and of one other node, between the
            checkpoints. After the first copy, training pauses for at most 1% of the time. If the job restarts on the
            same nodes, it resumes from the newest copy. Requires Linux. With sharded checkpoints, each rank copies its
            shard to its own node and to one other node.
        async_save: Whether training continues while a checkpoint is written.
        storage_timeout: Time without a successful save after which training stops with exit code 74, as a timedelta or
            in minutes. Must be above 0.
        identity: Identity of the run, such as a hash of its configuration. Stored in the manifests. A run
            with a different identity refuses to resume. Disabled if None.
        resume: Whether ``fit`` resumes from :meth:`latest_checkpoint` if it is called without ``ckpt_path``. Set it if
            a package calls ``fit``. After a finished run, another ``fit`` in the same process and folder is refused.
        weights_only: Argument of ``Trainer.fit`` when ``resume`` loads a checkpoint. False restores pickled entries.
        wrap_loaders: Whether to wrap the training loaders with :func:`stormproof.resumable`. Set it if a package
            creates the loaders. This changes the order of the batches, as ``resumable`` does.

    Attributes:
        store: Store of the checkpoints.
        mirror: URL or location of the mirror. None if disabled.
        tiers: Copies of the state outside the store.
        last_logged: Values logged last, by name.
        save_coordinator: Decides when to save. Its ``writer`` is set on rank 0 during training.

    Raises:
        ValueError: If a number is out of range, a URL has an unsupported scheme or no valid bucket, ``mirror`` is set
            although ``dirpath`` is a URL. Also if ``memory_tier`` is set and the system has no ``/dev/shm``.
        MissingExtraError: If a URL is passed, and the extra ``remote`` is not installed.
        OSError: If a URL requires credentials or an account that the environment lacks.

    Example:
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints", every_n_train_steps=50)
        >>> print(recovery.latest_checkpoint())  # before the first run
        None
        >>> trainer = pl.Trainer(callbacks=[recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())  # doctest: +SKIP

    References:
        Builds on Lightning's checkpoints, https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html.

        Mohan et al., CheckFreq: Frequent, Fine-Grained DNN Checkpointing (FAST 2021): saving in the background.

        Daly, A higher order estimate of the optimum checkpoint interval for restart dumps (2006), equation 37.
    """

    @check_arguments(every_n_train_steps="at least 1", keep_every_n_train_steps="at least 1")
    def __init__(
        self,
        dirpath: str | Path | Storage,
        *,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | float | None = None,
        max_overhead: float | None = None,
        mean_hours_between_failures: float | None = None,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        keep_every_n_train_steps: int | None = None,
        mirror: str | Storage | None = None,
        mirror_keep_last: int = 2,
        memory_tier: bool = False,
        async_save: bool = True,
        storage_timeout: timedelta | float = 30.0,
        identity: str | None = None,
        resume: bool = False,
        weights_only: bool | None = None,
        wrap_loaders: bool = False,
    ) -> None:
        if monitor is not None and save_top_k < 1:
            raise ValueError(f"`save_top_k` must be at least 1 with `monitor={monitor}`, got {save_top_k}.")
        timeout_minutes = _to_minutes(storage_timeout)
        if not timeout_minutes > 0:
            raise ValueError(f"`storage_timeout` must be above 0, got {storage_timeout}.")
        self.schedule = SaveSchedule(
            every_n_train_steps,
            None if train_time_interval is None else _to_minutes(train_time_interval),
            keep_every_n_train_steps,
            max_overhead,
            mean_hours_between_failures,
        )
        self.monitored_metric = MonitoredMetric(monitor)
        self.retention = Retention(keep_last, save_top_k if monitor else 0, mode, keep_every_n_train_steps)
        if not isinstance(dirpath, Storage) and is_url(dirpath):
            dirpath = ObjectStorage(str(dirpath), retry_seconds=RETRY_SECONDS)
        self.store = Store(dirpath)
        mirror = ObjectStorage(mirror, retry_seconds=RETRY_SECONDS) if isinstance(mirror, str) else mirror
        self.mirror = None if mirror is None else mirror.location
        self.tiers = make_tiers(
            self.store, self.retention, mirror=mirror, mirror_keep_last=mirror_keep_last, memory_tier=memory_tier
        )
        self.save_coordinator = SaveCoordinator(
            self.store,
            self.schedule,
            self.retention,
            self.monitored_metric,
            identity,
            self.tiers,
            async_save=async_save,
            storage_timeout_seconds=60 * timeout_minutes,
        )
        self._finder = CheckpointFinder(self.store, self.tiers, self.retention, identity)
        self.wrap_loaders, self.resume, self.weights_only = wrap_loaders, resume, weights_only
        self.last_logged: dict[str, float] = {}
        self._step_functions: list[Callable[[pl.Trainer, pl.LightningModule], None]] = []
        self._before_save_functions: list[Callable[[pl.Trainer, pl.LightningModule], bool | None]] = []
        self._goodput = Goodput(time.time())
        self._layout = Layout()  # of the last fit
        self._loaded, self._dynamic_shapes = LoadedState(self._layout), DynamicShapes()
        self._is_active = self._has_ended = self._is_tuning = False
        self._last_step = 0  # step at the last call between batches
        self._has_validated = False
        self._undo_functions: list[Callable[[], None]] = []  # revert changes to the trainer

    @property
    def resumed_from(self) -> Checkpoint | None:
        """Checkpoint that :meth:`latest_checkpoint` found. None before the call and if there is no checkpoint."""
        return self._finder.resumed_from

    @property
    def skipped_checkpoints(self) -> Sequence[BadCheckpoint]:
        """Newer checkpoints that :meth:`latest_checkpoint` skipped with a warning: damaged or unreadable ones."""
        return self._finder.skipped_checkpoints

    def latest_checkpoint(self, start_over: bool = False) -> str | None:
        """Returns the path of the newest good checkpoint after verifying its content. None without a checkpoint.

        If ``dirpath`` is a URL, returns the path of a copy in the temporary folder. Training deletes the copy after all
        ranks have loaded it.

        Requires no trainer. Modifies the folder only to download a newer checkpoint from ``mirror`` or, with
        ``memory_tier``, to commit a newer copy in memory, for which it acquires the lease. Call it on every rank.
        Before training begins, the ranks check that they found the same checkpoint. Only one rank per node reads its
        content.

        Args:
            start_over: Whether to begin at step 0 if all checkpoints are bad or lost.

        Raises:
            NoGoodCheckpointError: If all checkpoints are bad or lost.
            NotResumableError: If the checkpoint belongs to a run with another ``identity``.
            StorageError: If no checkpoint is good and at least one cannot be read, or if ``mirror`` cannot be read and
                the folder has no good checkpoint.
        """
        return self._finder.find_newest(start_over=start_over)

    def best_checkpoint(self) -> str | None:
        """Returns the path of the best good checkpoint by ``monitor``. None if no good checkpoint has a score."""
        return self._finder.find_best()

    def call_at_steps(self, function: Callable[[pl.Trainer, pl.LightningModule], None]) -> Callable[[], None]:
        """Calls ``function`` on all ranks before the first batch and between batches after each optimizer step.

        The function may call :meth:`commit`.

        Returns:
            Function that undoes this.
        """
        self._step_functions.append(function)
        return lambda: self._step_functions.remove(function)

    def call_before_saving(
        self, function: Callable[[pl.Trainer, pl.LightningModule], bool | None]
    ) -> Callable[[], None]:
        """Calls ``function`` on all ranks before the state between two batches is captured.

        The function may change the state or raise an exception. If it returns True, the state is committed even if only
        a copy in a tier is due.

        Returns:
            Function that undoes this.
        """
        self._before_save_functions.append(function)
        return lambda: self._before_save_functions.remove(function)

    def save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves a checkpoint now and returns while it is being written.

        Call it on all ranks together, between two batches after an optimizer step.
        """
        if self._is_active:
            self._save(trainer, pl_module, time.monotonic())

    def commit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float = inf) -> int | None:
        """Saves a checkpoint now and waits until it is committed.

        Call it on all ranks together, from a function of :meth:`call_at_steps`.

        Args:
            trainer: Running trainer.
            pl_module: Module that it trains.
            seconds: Time after which this returns if storage fails, in seconds. A write that makes progress is not
                limited.

        Returns:
            The step of the newest commit of this process, which is an earlier one if the current state is not finite,
            or could not be saved in time. None without a commit.

        Raises:
            StormproofError: On every rank, with exit code 74, if the checkpoint could not be saved and ``seconds`` is
                infinite.
        """
        deadline = time.monotonic() + seconds
        if self.schedule.last_saved_step != trainer.global_step and self.save_coordinator.wait_for_previous(seconds):
            self._save(trainer, pl_module, time.monotonic())
        return self.save_coordinator.wait_until_committed(deadline - time.monotonic())

    def finish_mirror(self, seconds: float) -> bool:
        """Waits up to ``seconds`` until the newest checkpoint is uploaded, before the run ends.

        All ranks call it, and wait for rank 0.

        Returns:
            Whether the newest checkpoint is uploaded. True without a mirror.
        """
        return all(tier.finish(seconds) for tier in self.tiers)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks that all ranks found the same checkpoint, and acquires the folder."""
        layout = self._layout = Layout.of(trainer)
        load_plan = LoadPlan(
            self.store.catalog.load_folder,
            partial(sharded_state.load_for_strategy, trainer, layout),
            after_loading=partial(prepare_checkpoint, trainer, layout),
        )
        self._undo_functions = [
            load_plan.install(trainer),
            internals.call_on_exception(trainer, self._release),
            sharded_averaging.prepare_averaging(trainer, layout),
        ]
        internals.replace_checkpoint_names(trainer, self._finder.find)
        self._is_active = stage == "fit" and not getattr(trainer, "fast_dev_run", False)
        if not self._is_active:
            return
        check_strategy(trainer, layout, "CheckpointRecovery requires the parameters and optimizer states of each rank")
        if self.wrap_loaders:
            self._undo_functions.append(wrap_training_loaders(trainer))
        self._finder.begin_fit()
        if self.resume:
            self._resume(load_plan)
        make_forks_safe()
        destroy_gloo_before_exit()
        ranks = Ranks(trainer.global_rank, trainer.local_rank, trainer.node_rank)
        resolution, replacement = self._finder.agree_on_newest(ranks)
        load_plan.replacements |= replacement
        self._undo_functions += [
            call_after(trainer.strategy, "setup", self._record_settings),
            internals.call_before_loading_loaders(trainer, lambda: self._loaded.check_loaders(trainer)),
            *internals.wrap_tuners(trainer, self._tune),
        ]
        self._loaded = LoadedState(layout)
        self._has_validated = self._has_ended = False
        self._dynamic_shapes = DynamicShapes()
        self.monitored_metric.reset()
        self.schedule.reset()
        self.save_coordinator.open(resolution, ranks, layout)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Replaces rank 0's states in the checkpoint with those of this rank."""
        if not self._is_active or trainer.state.fn != "fit" or self._is_tuning:
            return
        if self._loaded.read(trainer, checkpoint) and self.save_coordinator.writer is not None:
            self.save_coordinator.writer.set_baseline(checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Creates averages of sharded parameters, and checks the loaded state.

        Checks that all ranks loaded the same state, and that a run with checkpoints does not begin at step 0.
        """
        sharded_averaging.create_averages(trainer, pl_module, self._layout)
        if self._is_active and not trainer.strategy.restore_checkpoint_after_setup:
            self._check_loaded_state(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Registers the function that restores and saves the state between batches."""
        if not self._is_active:
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            self._check_loaded_state(trainer)
        check_data_parallelism(self._layout)
        check_loop(trainer)
        check_initialized(pl_module)
        self._loaded.prepare_training(trainer)
        self._last_step = trainer.global_step
        self._goodput.start(time.time())
        self._undo_functions += [
            self.save_coordinator.start(trainer),
            internals.call_between_batches(trainer, lambda: self._run_between_batches(trainer, pl_module)),
        ]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the progress of the attempt."""
        self.save_coordinator.record_progress(trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records that the validation loaders have been iterated, possibly in the sanity check."""
        self._has_validated = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records that the monitored metric has a new value."""
        self.monitored_metric.record_validation(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Commits the final state, after every callback's ``on_train_end``."""
        self._has_ended = False
        if not self._is_active:
            return
        if self._loaded.is_pending:  # the loaded run had already ended
            self._report_finished(trainer.global_step)
            self._loaded.restore_final(trainer, pl_module)
        elif self.schedule.has_saved:
            self.save_coordinator.save(
                trainer, pl_module, time.monotonic(), has_validated=self._has_validated, has_ended=True
            )
        self._has_ended = True
        for tier in self.tiers:
            tier.finish(FINISH_SECONDS, waits_for_all=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Releases the folder."""
        if self._has_ended:
            _FINISHED_LOCATIONS.add(self.store.absolute_location)
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Releases the folder."""
        if not self._undo_functions:  # another callback failed before `setup`
            sharded_averaging.explain_callback_order(trainer, exception)
        if isinstance(exception, DivergedError) and self._is_active and self.tiers:
            # raised on all ranks; the others wait, because a launcher kills rank 0 once one of them exits
            run_on_rank_zero(self._discard_copies)
        # after a preemption, the current state is committed, or the time for it is over
        self._release(is_interrupted=isinstance(exception, (KeyboardInterrupt, PreemptedExit)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the productive time of the run."""
        return {"time": self._goodput.state_dict(time.time())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the productive time of the run."""
        self._goodput.load_state_dict(state_dict["time"])

    def _resume(self, load_plan: LoadPlan) -> None:
        location, path = self.store.absolute_location, self._finder.find_newest(start_over=self._finder.start_over)
        if path is None:
            _FINISHED_LOCATIONS.discard(location)  # the user emptied it
        elif location not in _FINISHED_LOCATIONS:
            load_plan.default_path, load_plan.default_weights_only = path, self.weights_only

    def _inactive_state(self) -> dict[str, Any]:
        if not self._is_active:
            return {"_undo_functions": []}
        names = ("_undo_functions", "_step_functions", "_before_save_functions")
        return {**{name: [] for name in names}, "_loaded": LoadedState(Layout()), "_is_active": False}

    def _record_settings(self, _: None, trainer: pl.Trainer) -> None:
        self.save_coordinator.settings = script_settings.describe(trainer)

    def _tune(self, tune: Callable[[], None], ends_fit: bool) -> None:
        """Runs one of Lightning's tuner callbacks, unless it would replace a loaded state."""
        if self._loaded.is_pending and not ends_fit:
            return
        self._is_tuning = True
        try:
            tune()
        finally:
            self._is_tuning = False

    def _report_finished(self, step: int) -> None:
        """Refuses a second fit that trains nothing in this process. Otherwise, logs that nothing is trained."""
        location = self.store.location
        advice = "To continue the run, raise max_epochs or max_steps. Otherwise use another folder."
        if self.store.absolute_location in _FINISHED_LOCATIONS:
            raise NotResumableError(f"{location} contains a finished run of {step} steps. {advice}")
        log_event(__name__, f"{location}: training already finished at step {step}. {advice}")

    def _check_loaded_state(self, trainer: pl.Trainer) -> None:
        self.save_coordinator.settings = self._loaded.compare_settings(self.save_coordinator.settings)
        self._finder.check_loaded(
            has_loaded=self._loaded.is_loaded, global_step=trainer.global_step, is_resume_set=self.resume
        )

    def _run_between_batches(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._is_tuning:
            return
        step, stall_start = trainer.global_step, time.monotonic()
        # after all hooks, which may register a communication hook
        for reason in [] if self.schedule.has_saved else find_resume_caveats(trainer):
            rank_zero_warn(f"A resume {'may' if 'exact only if' in reason else 'will'} not be exact: {reason}.")
        is_resuming = self._loaded.is_pending
        if is_resuming:
            self._has_validated = self._loaded.restore(trainer, module)
            self.save_coordinator.set_baseline(trainer, module)
        self.save_coordinator.unsaved_attributes.observe(trainer)
        self._dynamic_shapes.warn_once()
        if is_resuming:
            self.schedule.record_save(step, time.monotonic())
            self._report_recovery(trainer, step)
            self.save_coordinator.record_progress(step)
        elif not self.schedule.has_saved:
            self._save(trainer, module, stall_start)
        elif step == self._last_step:  # gradients are being accumulated, and checkpoints do not contain them
            return
        elif (destination := self.save_coordinator.find_due_destination(trainer, self._last_step)) is not None:
            self._save(trainer, module, stall_start, destination)
        self._last_step = step
        for function in tuple(self._step_functions):
            function(trainer, module)

    def _save(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        stall_start: float,
        destination: Destination = "storage",
    ) -> None:
        must_commit = [function(trainer, module) for function in tuple(self._before_save_functions)]
        if destination == "tiers" and not any(must_commit):
            self.save_coordinator.copy_to_tiers(trainer, module, stall_start, has_validated=self._has_validated)
            return
        stall = self.save_coordinator.save(trainer, module, stall_start, has_validated=self._has_validated)
        self._log(trainer, {"checkpoint/stall_seconds": stall})

    def _discard_copies(self) -> None:
        try:
            self.save_coordinator.discard_copies()
        except OSError as error:
            rank_zero_warn(f"The next attempt may resume from diverged weights: {error.strerror}.")

    def _report_recovery(self, trainer: pl.Trainer, step: int) -> None:
        """Logs the cost of the interruption."""
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
        self.save_coordinator.close(is_interrupted=is_interrupted, has_ended=self._has_ended)
        self._finder.end_fit()
        self._is_active = False


def _to_minutes(time: timedelta | float) -> float:
    return time.total_seconds() / 60 if isinstance(time, timedelta) else time

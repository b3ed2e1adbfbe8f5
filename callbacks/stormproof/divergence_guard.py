"""Skips anomalous steps, rolls back, or stops when a run diverges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback
from torch.optim import Optimizer

from stormproof.arguments import check_arguments
from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.distributed.collectives import broadcast
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.divergence import rollback
from stormproof.divergence.detector import Anomaly, DivergenceDetector
from stormproof.divergence.lr_scale import LearningRateScale
from stormproof.divergence.step_monitor import StepMonitor
from stormproof.errors import DivergedError, NotResumableError
from stormproof.finding import Finding, Problem, Severity
from stormproof.lightning import internals
from stormproof.lightning.find_callback import find_callback
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.layout import Layout
from stormproof.lightning.logging_steps import log_values
from stormproof.lightning.optimizer_step import get_scaler, skip_step
from stormproof.resume.compatibility import check_strategy
from stormproof.training_health import TrainingHealth

MAX_CONSECUTIVE_ANOMALIES = {"skip": 10, "rollback": 3}
"""Number of consecutive anomalous steps that ends skipping, by action."""


class DivergenceGuard(InactiveCopies, Callback):
    """Detects non-finite values and spikes of losses and gradient norms, and skips, rolls back or stops.

    With ``every_n_steps=1``, each step is checked before the optimizer's update. The check includes the norm of the
    reduced gradient, which is equal on all ranks, and the loss, which several ranks exchange every ten steps. An
    anomalous step is always skipped: weights, optimizer states and buffers stay unchanged. With a larger
    ``every_n_steps``, the losses of that many steps are read together after their updates, which synchronizes with the
    device less often.
    :class:`stormproof.divergence.spike_detector.SpikeDetector` defines a spike.

    Actions:

    - ``skip``: Skips anomalous steps. Ten consecutive ones stop the run.
    - ``rollback``: Skips anomalous steps. After three consecutive ones, or if an anomaly is detected after the update,
      restores parameters, buffers, optimizer states and averaged weights from a checkpoint of
      :class:`stormproof.CheckpointRecovery`. It chooses the newest one that at least ten healthy steps followed. Data
      position, counters and schedules do not change. The restored state is saved.
    - ``stop``: Stops the run.

    A stop raises :class:`stormproof.DivergedError` on all ranks (exit code 76). Every action also stops after more than
    ``max_rollbacks`` anomalies with non-finite values or rollbacks within ``rollback_window_steps``. No checkpoint is
    saved while the run diverges. Checkpoints newer than the restored one are moved to ``quarantine/``. If the first
    step after a rollback is a spike again, the data or the loss has changed. The guard then warns and, from then on,
    compares with the values after the rollback.

    Logged values:

    | name                         | value                          | when              |
    |------------------------------|--------------------------------|-------------------|
    | ``divergence/skipped_steps`` | skipped steps so far           | after each change |
    | ``divergence/rollbacks``     | rollbacks so far               | after each change |
    | ``divergence/lr_factor``     | learning-rate scale, in (0, 1] | after each change |

    Limits: An overflow of a gradient scaler is an anomaly only after twenty consecutive overflows. After a loss of zero
    or below, losses are only checked for being finite. With manual optimization, only the gradients of each optimizer
    are checked. LBFGS is not supported. Metrics keep the values of skipped batches, so early stopping should not
    monitor a metric of training batches. Floating-point buffers are copied at each checked step.

    Args:
        action: One of ``"skip"``, ``"rollback"`` and ``"stop"``.
        every_n_steps: Interval of the checks in optimizer steps. Must be at least 1, and 1 with ``action="skip"``.
            By default 1 on a CPU or with ``action="skip"``, otherwise 10.
        lr_factor: Factor by which each rollback multiplies the learning rates, in addition to schedulers. Must be in
            (0, 1].
        max_rollbacks: Maximum number of rollbacks and non-finite anomalies within ``rollback_window_steps``. Must be at
            least 0.
        rollback_window_steps: Number of steps over which ``max_rollbacks`` counts. Must be at least 1.
        window: Number of healthy steps that a value is compared with. Must be at least 32.
        spike_sigma: Threshold of a spike, in robust standard deviations of the logarithm above the median. Must be
            above 0.
        stop_on_critical: Whether a critical finding of the trainer's :class:`stormproof.TrainingHealth` stops the run,
            unless the guard handles its problem through ``action``. Can also be a TrainingHealth instance.

    Attributes:
        skipped: Number of skipped steps.
        rollbacks: Number of rollbacks.

    Raises:
        ValueError: If an argument is out of range.
        NotResumableError: In ``setup``, if a required callback is missing or the strategy shards gradients.
        DivergedError: In ``fit``, if the run diverges and ``action`` does not help.

    Example:
        >>> guard = DivergenceGuard(action="rollback", lr_factor=0.5, max_rollbacks=3)
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints")
        >>> trainer = pl.Trainer(callbacks=[guard, recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())  # doctest: +SKIP

    References:
        Chowdhery et al., PaLM: Scaling language modeling with Pathways, 2022, section 5.1: rollback by about 100 steps
        and training on other batches.
    """

    @check_arguments(
        every_n_steps="at least 1",
        lr_factor="above 0 and at most 1",
        max_rollbacks="at least 0",
        rollback_window_steps="at least 1",
    )
    def __init__(
        self,
        action: Literal["skip", "rollback", "stop"] = "rollback",
        *,
        every_n_steps: int | None = None,
        lr_factor: float = 1.0,
        max_rollbacks: int = 5,
        rollback_window_steps: int = 1000,
        window: int = 128,
        spike_sigma: float = 7.0,
        stop_on_critical: TrainingHealth | bool = False,
    ) -> None:
        if action == "skip" and every_n_steps not in {None, 1}:
            raise ValueError(f"`every_n_steps` must be 1 with action='skip', got {every_n_steps}.")
        self.action, self.every_n_steps, self.lr_factor = action, every_n_steps, lr_factor
        self.max_rollbacks, self.rollback_window_steps = max_rollbacks, rollback_window_steps
        self.window, self.spike_sigma, self.stop_on_critical = window, spike_sigma, stop_on_critical
        self._training_health: TrainingHealth | None = None
        self._recovery: CheckpointRecovery | None = None
        self._step_monitor: StepMonitor | None = None  # None outside training
        self._undo_functions: list[Callable[[], None]] = []
        self._module_id = 0
        self._reset()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds the required callbacks. Resets the state, unless ``fit`` continues an earlier run."""
        self._recovery = None
        if stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        destroy_gloo_before_exit()
        if trainer.global_step == 0 or self._module_id != id(pl_module):
            self._reset()
        self._module_id = id(pl_module)
        requirement = "DivergenceGuard requires a gradient norm that is known on all ranks"
        check_strategy(trainer, Layout.of(trainer), requirement)
        self._recovery = find_callback(trainer, CheckpointRecovery)
        self._training_health = (
            find_callback(trainer, TrainingHealth) if self.stop_on_critical is True else self.stop_on_critical or None
        )
        if self.stop_on_critical and self._training_health is None:
            raise NotResumableError(
                "DivergenceGuard(stop_on_critical=True) requires TrainingHealth: add TrainingHealth to the callbacks"
            )
        if self.action != "rollback":
            return
        if self._recovery is None:
            raise NotResumableError(
                "DivergenceGuard(action='rollback') requires CheckpointRecovery: add CheckpointRecovery to the "
                "callbacks or choose action='skip' or 'stop'"
            )
        save_interval, retention = self._recovery.schedule.every_n_train_steps, self._recovery.retention
        if (
            save_interval is not None
            and retention.keep_every_n_train_steps is None
            and save_interval * retention.keep_last < rollback.MARGIN_STEPS
        ):
            rank_zero_warn(
                f"DivergenceGuard rolls back to checkpoints that {rollback.MARGIN_STEPS} healthy steps followed, but "
                "CheckpointRecovery deletes them earlier. Set its keep_last to "
                f"{rollback.MARGIN_STEPS // save_interval + 1} or save less often."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts checking steps."""
        if getattr(trainer, "fast_dev_run", False):
            return
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            rank_zero_warn(
                "DivergenceGuard is inactive: it does not support LBFGS, which evaluates the loss many times per step."
            )
            return
        on_cpu = trainer.strategy.root_device.type == "cpu"
        every_n_steps = self.every_n_steps or (1 if on_cpu or self.action == "skip" else 10)
        if every_n_steps > 1 and not pl_module.automatic_optimization:
            rank_zero_warn(
                "DivergenceGuard is inactive: with manual optimization it checks gradients only. Set every_n_steps=1."
            )
        self._step_monitor = StepMonitor(trainer, pl_module, self._detectors, every_n_steps, lambda: self.skipped)
        scales_lr = self.lr_factor < 1 or self._lr_scale.factor < 1
        self._undo_functions = [
            *(self._lr_scale.attach(trainer.optimizers) if scales_lr else []),
            internals.call_between_batches(trainer, lambda: self._act_between_batches(trainer, pl_module)),
            internals.call_before_update(trainer, lambda optimizer: self._skip_anomalous_step(trainer, optimizer)),
        ]
        if self._recovery is not None:
            self._undo_functions.append(self._recovery.call_before_saving(self._check_before_saving))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Captures the buffers before the first batch of a step."""
        if self._step_monitor is not None:
            self._step_monitor.on_train_batch_start()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Adds the loss of the batch to the loss of the step."""
        if self._step_monitor is not None:
            self._step_monitor.on_before_backward(loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Checks the step. An anomalous step is skipped after the hooks of all other callbacks."""
        detection = None if self._step_monitor is None else self._step_monitor.on_before_optimizer_step(optimizer)
        self._must_skip = detection is not None
        if detection is not None:
            self._handle_anomaly(*detection, is_applied=False)
            self.skipped += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the loss if the batch completed a step."""
        if self._step_monitor is not None:
            self._step_monitor.on_train_batch_end()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks losses. In the last epoch, rolls back after any anomaly, because no later step can show a recovery."""
        if self.action == "rollback" and self._step_monitor is not None and _is_last_epoch(trainer):
            self._diverged_since = min(
                (detector.since_step for detector in self._detectors.values() if detector.since_step is not None),
                default=None,
            )
        self._check(trainer, pl_module)
        if self._has_failed_twice and _is_last_epoch(trainer) and trainer.global_step <= self._rollback_steps[-1]:
            raise DivergedError(
                f"training diverges until its end at step {trainer.global_step}, after {self.rollbacks} rollbacks "
                "without effect: lower the learning rate, clip gradients or check the data"
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks losses before the validation of a diverged state."""
        self._check(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops checking steps."""
        self._detach()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stops checking steps."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {
            "detectors": {str(index): detector.state_dict() for index, detector in self._detectors.items()},
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "lr_factor": self._lr_scale.factor,
            "rollback_steps": list(self._rollback_steps),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        self._reset()
        for index, state in state_dict["detectors"].items():
            self._detectors[int(index)].load_state_dict(state)
        self.skipped, self.rollbacks = state_dict["skipped"], state_dict["rollbacks"]
        self._lr_scale.factor = state_dict["lr_factor"]
        self._rollback_steps = list(state_dict["rollback_steps"])

    def _inactive_state(self) -> dict[str, Any]:
        return {"_training_health": None, "_recovery": None, "_step_monitor": None, "_undo_functions": []}

    def _reset(self) -> None:
        detector = partial(DivergenceDetector, self.window, self.spike_sigma, self.rollback_window_steps)
        self._detectors: defaultdict[int, DivergenceDetector] = defaultdict(detector, {0: detector()})  # by optimizer
        self.skipped = self.rollbacks = 0
        self._lr_scale = LearningRateScale()
        self._rollback_steps: list[int] = []  # steps at which rollbacks took place
        self._diverged_since: int | None = None  # first diverged step if a rollback is pending
        self._must_skip = self._must_save = self._has_unlogged_values = False
        self._is_finite = True  # the last anomaly
        self._has_failed_twice = False  # no step was finite between the last two rollbacks

    def _skip_anomalous_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Skips the update if the step is anomalous. Called after the hooks of all callbacks."""
        if self._must_skip:
            self._must_skip = False
            skip_step(optimizer, get_scaler(trainer))

    def _act_between_batches(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Checks losses, rolls back and saves if necessary. Does nothing while gradients are accumulated."""
        assert self._step_monitor is not None
        if self._step_monitor.is_accumulating:
            return
        if self._has_unlogged_values or self._step_monitor.is_due:
            self._check(trainer, module)
        if self._must_save and self._recovery is not None:
            self._recovery.save(trainer, module)

    def _check_before_saving(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Checks losses before a checkpoint is saved, so that no diverged state is saved.

        Returns:
            Whether the state must be committed, because training was rolled back.
        """
        self._check(trainer, module)
        must_save, self._must_save = self._must_save, False
        return must_save

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Checks the losses since the last call, rolls back if necessary, and logs."""
        if self._step_monitor is None:
            return
        if self._training_health is not None:
            stop_on_critical(self._training_health.findings)
        anomaly = self._step_monitor.check_losses()
        if anomaly is not None:
            self._handle_anomaly(anomaly, self._detectors[0], is_applied=True)
        if self._diverged_since is not None:
            self._roll_back(trainer, module, self._diverged_since)
            self._step_monitor.reset_after_rollback()
        if self._has_unlogged_values:
            self._has_unlogged_values = False
            values = {"skipped_steps": self.skipped, "rollbacks": self.rollbacks, "lr_factor": self._lr_scale.factor}
            log_values(trainer, {f"divergence/{name}": float(value) for name, value in values.items()})

    def _handle_anomaly(self, anomaly: Anomaly, detector: DivergenceDetector, *, is_applied: bool) -> None:
        """Warns and schedules a rollback if necessary. ``is_applied`` is True if the update has taken place."""
        self._has_unlogged_values, self._is_finite = True, anomaly.median is not None
        self._raise_if_diverged(detector, f"at {anomaly}")
        if detector.consecutive_anomalies == 1:
            consequence = "detected after the update" if is_applied else "the step is skipped"
            count_note = (
                f" (anomaly {detector.anomaly_count} of {self.max_rollbacks} allowed in "
                f"{self.rollback_window_steps} steps)"
                if anomaly.median is None
                else ""
            )
            rank_zero_warn(f"{anomaly}; {consequence}{count_note}")
        if self.action == "rollback" and (
            is_applied or detector.consecutive_anomalies >= MAX_CONSECUTIVE_ANOMALIES[self.action]
        ):
            self._diverged_since = detector.since_step

    def _raise_if_diverged(self, detector: DivergenceDetector, occurrence: str) -> None:
        """Raises DivergedError if the action and its limits require a stop."""
        anomaly_count, consecutive_anomalies = detector.anomaly_count, detector.consecutive_anomalies
        if self.action == "stop":
            reason = ""
        elif anomaly_count > self.max_rollbacks:
            reason = (
                f" (anomaly {anomaly_count} within {self.rollback_window_steps} steps, max_rollbacks is "
                f"{self.max_rollbacks})"
            )
        elif self.action == "skip" and consecutive_anomalies >= MAX_CONSECUTIVE_ANOMALIES[self.action]:
            reason = f" ({consecutive_anomalies} consecutive anomalous steps)"
        else:
            return
        raise DivergedError(
            f"training diverges {occurrence}{reason}: lower the learning rate, clip gradients or check the data"
        )

    def _roll_back(self, trainer: pl.Trainer, module: pl.LightningModule, since_step: int) -> None:
        """Rolls back to a checkpoint, lowers the learning rate and warns."""
        assert self._recovery is not None
        step = trainer.global_step
        self._detectors[0].count_anomaly(step)
        self._raise_if_diverged(self._detectors[0], f"since step {since_step}")
        store, coordinator = self._recovery.store, self._recovery.save_coordinator
        other_callbacks = [
            callback for callback in internals.callbacks(trainer) if not isinstance(callback, CheckpointRecovery)
        ]
        checkpoint = rollback.roll_back(
            trainer, module, store, coordinator, other_callbacks, since_step, self._rollback_steps
        )
        self._recovery.monitored_metric.reset()  # the last validation was of other weights
        detector_states = checkpoint["callbacks"].get(self.state_key, {"detectors": {}})["detectors"]
        # no optimizer has taken a healthy step since the last rollback
        has_shifted = bool(self._rollback_steps) and since_step <= self._rollback_steps[-1] + len(trainer.optimizers)
        for index, detector in self._detectors.items():
            # after a shift, the losses of the checkpoint are not comparable
            detector.roll_back(None if has_shifted else detector_states.get(str(index)))
        self._has_failed_twice = has_shifted and not self._is_finite
        self._rollback_steps.append(step)
        self._lr_scale.factor *= self.lr_factor
        self.rollbacks += 1
        self._diverged_since, self._must_save, self._has_unlogged_values = None, True, True
        lr_note = f", the learning-rate scale is {self._lr_scale.factor:.3g}" if self._lr_scale.factor < 1 else ""
        rank_zero_warn(
            f"step {step}: rolled back to the weights of step {checkpoint['global_step']}, the data position is "
            f"unchanged{lr_note}"
            + (
                "; the first step after the last rollback was a spike too, so later steps are compared with new values"
                if has_shifted
                else ""
            )
        )

    def _detach(self) -> None:
        while self._undo_functions:
            self._undo_functions.pop()()
        if self._step_monitor is not None:
            self._step_monitor.stop()
        self._step_monitor = None


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    """Returns True if training ends with the current epoch."""
    max_epochs = trainer.max_epochs
    return (
        trainer.should_stop
        or (max_epochs is not None and max_epochs != -1 and trainer.current_epoch + 1 >= max_epochs)
        or (trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps)
    )


HANDLED_BY_GUARD = frozenset({
    Problem.NON_FINITE_DATA, Problem.NON_FINITE, Problem.EXPLODING_GRADIENTS, Problem.LOSS_SPIKE,
})  # fmt: skip
"""Problems that DivergenceGuard handles through its ``action``."""


def stop_on_critical(findings: Iterable[Finding]) -> None:
    """Ends the run on all ranks if a finding of rank 0 is critical. All ranks must call this together.

    Args:
        findings: Findings of TrainingHealth. Ignored on ranks other than 0.

    Raises:
        DivergedError: If one of them is critical and DivergenceGuard does not handle its problem.
    """
    critical = [
        finding
        for finding in findings
        if finding.severity == Severity.CRITICAL and finding.problem not in HANDLED_BY_GUARD
    ]
    message = broadcast(str(critical[0]) if critical else None)
    if message is not None:
        raise DivergedError(f"stopped because of a critical finding of TrainingHealth: {message}")

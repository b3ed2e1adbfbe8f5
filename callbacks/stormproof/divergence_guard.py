"""A training that diverges is kept from it, or ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Callback
from torch.optim import Optimizer

from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.divergence import rollback
from stormproof.divergence.detector import Anomaly, DivergenceDetector
from stormproof.divergence.lr_scale import LearningRateScale
from stormproof.divergence.step_monitor import StepMonitor
from stormproof.divergence.stop_on_finding import stop_on_critical
from stormproof.errors import DivergedError, NotResumableError
from stormproof.lightning import internals
from stormproof.lightning.find_callback import find_callback
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.logging_steps import log_values
from stormproof.lightning.optimizer_step import get_scaler, skip_step
from stormproof.resume.compatibility import check_strategy
from stormproof.training_health import TrainingHealth

MAX_CONSECUTIVE_ANOMALIES = {"skip": 10, "rollback": 3}
"""Anomalous steps in a row after which something else is done than to skip them."""


class DivergenceGuard(InactiveCopies, Callback):
    """Looks at losses and gradients, and does something about a step that is not finite or a spike.

    It looks before the optimizer's update (``every_n_steps=1``): at the norm of the reduced gradient, which all ranks
    share, and the loss of the step, which several ranks tell each other every ten steps. One that is anomalous there is
    skipped, whatever else is done: the weights, the optimizer and the buffers stay as they were. With a greater
    ``every_n_steps`` it reads the losses of so many steps at once, which waits for the device so much less often, and
    finds out afterwards. :class:`stormproof.divergence.spike_detector.SpikeDetector` says what a spike is.

    What it does is up to ``action``:

    - ``skip``: anomalous steps are skipped. Ten in a row end the training.
    - ``rollback``: if that does not help for three steps, or it was found too late, parameters, buffers, optimizers and
      averages of the weights are set back to the newest checkpoint of the :class:`stormproof.CheckpointRecovery` beside
      it that was healthy for ten steps more. The data, the counters and the schedules go on, and the state is saved.
    - ``stop``: the training ends.

    A training ends by :class:`stormproof.errors.DivergedError` on all ranks, whose ``exit_code`` is 76; as it does when
    it was not finite, or went back, more than ``max_rollbacks`` times within ``rollback_window_steps``. Nothing is
    saved while it diverges, and what was saved after the state that it goes back to is moved to ``quarantine/``. Where
    the very first step with the weights that it went back to is a spike again, it is the data or the loss that changed:
    it says so, takes the new size of the numbers for good and compares anew.

    A gradient scaler's overflows are no anomaly, unless twenty steps in a row do. A loss that is zero or below is only
    watched for being finite. In manual optimization losses are not looked at, each optimizer's gradient is. LBFGS is
    left alone. What a skipped batch did to metrics stays there: do not stop early by a metric of the training.
    Floating-point buffers are copied at every step that is looked at.

    Args:
        action: what to do.
        every_n_steps: 1, to look before each update, or the steps between two looks. None: 1 for a module on a CPU and
            where ``action`` is ``skip``; else 10.
        lr_factor: what the learning rates are multiplied by after each going back, for good, whatever schedulers say;
            in (0, 1].
        max_rollbacks: how often that may be within ``rollback_window_steps``, at least 0.
        rollback_window_steps: at least 1.
        window: healthy steps that a value is compared with, at least 32.
        spike_sigma: robust standard deviations, above 0, by which the logarithm of a spike is above the median.
        stop_on_critical: Whether a critical finding of the trainer's :class:`stormproof.TrainingHealth` ends the run,
            unless the guard handles its problem through ``action``. Or the TrainingHealth itself.

    Attributes:
        skipped: the steps that were skipped.
        rollbacks: how often it was gone back.

    Raises:
        ValueError: if a value is out of its range.

    Example:
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints")
        >>> trainer = pl.Trainer(callbacks=[DivergenceGuard(), recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())  # doctest: +SKIP

    References:
        PaLM, Chowdhery et al. 2022, section 5.1: going back some 100 steps and on with other data.
    """

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
        if action not in {"skip", "rollback", "stop"}:
            raise ValueError(f"action is {action!r}; it is 'skip', 'rollback' or 'stop'")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        if action == "skip" and every_n_steps not in {None, 1}:
            raise ValueError(f"every_n_steps is {every_n_steps}; a step can only be skipped where it is 1")
        if not 0 < lr_factor <= 1:
            raise ValueError(f"lr_factor is {lr_factor}; it is above 0 and at most 1")
        if max_rollbacks < 0 or rollback_window_steps < 1:
            raise ValueError(
                f"max_rollbacks is {max_rollbacks} in {rollback_window_steps} steps; they must be at least 0 and 1"
            )
        self.action, self.every_n_steps, self.lr_factor = action, every_n_steps, lr_factor
        self.max_rollbacks, self.rollback_window_steps = max_rollbacks, rollback_window_steps
        self.window, self.spike_sigma, self.stop_on_critical = window, spike_sigma, stop_on_critical
        self._training_health: TrainingHealth | None = None
        self._recovery: CheckpointRecovery | None = None
        self._step_monitor: StepMonitor | None = None  # while it looks
        self._undo_functions: list[Callable[[], None]] = []
        self._module_id = 0
        self._reset()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Looks for what it needs, and forgets an earlier training, unless this one goes on with it."""
        self._recovery = None
        if stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        destroy_gloo_before_exit()
        if trainer.global_step == 0 or self._module_id != id(pl_module):
            self._reset()
        self._module_id = id(pl_module)
        check_strategy(trainer, "DivergenceGuard needs a gradient whose norm all ranks know")
        self._recovery = find_callback(trainer, CheckpointRecovery)
        self._training_health = (
            find_callback(trainer, TrainingHealth) if self.stop_on_critical is True else self.stop_on_critical or None
        )
        if self.stop_on_critical and self._training_health is None:
            raise NotResumableError(
                "DivergenceGuard(stop_on_critical=True) watches a TrainingHealth: put one among the callbacks"
            )
        if self.action != "rollback":
            return
        if self._recovery is None:
            raise NotResumableError(
                "DivergenceGuard goes back to what a CheckpointRecovery saved: put one among the callbacks, or choose "
                "action='skip' or 'stop'"
            )
        save_interval, retention = self._recovery.schedule.every_n_train_steps, self._recovery.retention
        if (
            save_interval is not None
            and retention.keep_every_n_train_steps is None
            and save_interval * retention.keep_last < rollback.MARGIN_STEPS
        ):
            rank_zero_warn(
                f"DivergenceGuard trusts a checkpoint that {rollback.MARGIN_STEPS} healthy steps followed, and none is "
                f"kept as long: give CheckpointRecovery keep_last={rollback.MARGIN_STEPS // save_interval + 1}, or "
                f"save less "
                "often"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to look."""
        if getattr(trainer, "fast_dev_run", False):
            return
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            rank_zero_warn(
                "DivergenceGuard leaves LBFGS alone, whose steps look at the loss and the gradient many times"
            )
            return
        on_cpu = trainer.strategy.root_device.type == "cpu"
        every_n_steps = self.every_n_steps or (1 if on_cpu or self.action == "skip" else 10)
        if every_n_steps > 1 and not pl_module.automatic_optimization:
            rank_zero_warn(
                "DivergenceGuard sees nothing here: of manual optimization it looks at gradients, which takes "
                "every_n_steps=1"
            )
        self._step_monitor = StepMonitor(trainer, pl_module, self._detectors, every_n_steps)
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
        """Keeps the buffers, before the first batch of a step."""
        if self._step_monitor is not None:
            self._step_monitor.on_train_batch_start()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Keeps the loss: this batch's part of the step's."""
        if self._step_monitor is not None:
            self._step_monitor.on_before_backward(loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the step; an anomalous one is skipped once all other hooks have seen it."""
        detection = None if self._step_monitor is None else self._step_monitor.on_before_optimizer_step(optimizer)
        self._must_skip = detection is not None
        if detection is not None:
            self._handle_anomaly(*detection, is_applied=False)
            self.skipped += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes down the loss of a step that is done."""
        if self._step_monitor is not None:
            self._step_monitor.on_train_batch_end()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, so that no diverged state is the last: at the end nothing will show whether skipping was enough."""
        if self.action == "rollback" and self._step_monitor is not None and _is_last_epoch(trainer):
            self._diverged_since = min(
                (detector.since_step for detector in self._detectors.values() if detector.since_step is not None),
                default=None,
            )
        self._check(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, so that no diverged state is validated."""
        self._check(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks no longer."""
        self._detach()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Looks no longer."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values."""
        return {
            "detectors": {str(index): detector.state_dict() for index, detector in self._detectors.items()},
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "lr_factor": self._lr_scale.factor,
            "proven": list(self._rollback_steps),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._reset()
        for index, state in state_dict["detectors"].items():
            self._detectors[int(index)].load_state_dict(state)
        self.skipped, self.rollbacks = state_dict["skipped"], state_dict["rollbacks"]
        self._lr_scale.factor = state_dict["lr_factor"]
        self._rollback_steps = list(state_dict["proven"])

    def _inactive_state(self) -> dict[str, Any]:
        return {"_training_health": None, "_recovery": None, "_step_monitor": None, "_undo_functions": []}

    def _reset(self) -> None:
        detector = partial(DivergenceDetector, self.window, self.spike_sigma, self.rollback_window_steps)
        self._detectors: defaultdict[int, DivergenceDetector] = defaultdict(detector, {0: detector()})  # by optimizer
        self.skipped = self.rollbacks = 0
        self._lr_scale = LearningRateScale()
        self._rollback_steps: list[int] = []  # steps at which it was gone back
        self._diverged_since: int | None = None  # the step since which it diverges, where it must go back
        self._must_skip = self._must_save = self._has_unlogged_values = False

    def _skip_anomalous_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        if self._must_skip:
            self._must_skip = False
            skip_step(optimizer, get_scaler(trainer))

    def _act_between_batches(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self._step_monitor is not None
        if self._step_monitor.is_accumulating:
            return
        if self._has_unlogged_values or self._step_monitor.is_due:
            self._check(trainer, module)
        if self._must_save and self._recovery is not None:
            self._recovery.save(trainer, module)

    def _check_before_saving(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._check(trainer, module)
        self._must_save = False

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Looks at the losses since the last time, and does what is to be done."""
        if self._step_monitor is None:
            return
        if self._training_health is not None:
            stop_on_critical(self._training_health.findings)
        anomaly = self._step_monitor.check_losses(self.skipped)
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
        """Says so, and decides what is to be done; ``is_applied`` if the step is taken already."""
        self._has_unlogged_values = True
        self._raise_if_diverged(detector, f"at {anomaly}")
        if detector.consecutive_anomalies == 1:
            consequence = "it showed when the step was taken" if is_applied else "the step is skipped"
            count_note = (
                f" ({detector.anomaly_count} of {self.max_rollbacks} times in {self.rollback_window_steps} steps)"
            )
            rank_zero_warn(f"{anomaly}; {consequence}{count_note if anomaly.median is None else ''}")
        if self.action == "rollback" and (
            is_applied or detector.consecutive_anomalies >= MAX_CONSECUTIVE_ANOMALIES[self.action]
        ):
            self._diverged_since = detector.since_step

    def _raise_if_diverged(self, detector: DivergenceDetector, occurrence: str) -> None:
        """Raises DivergedError if nothing is left to be done about what shows there."""
        anomaly_count, consecutive_anomalies = detector.anomaly_count, detector.consecutive_anomalies
        if self.action == "stop":
            reason = ""
        elif anomaly_count > self.max_rollbacks:
            reason = (
                f", time {anomaly_count} within {self.rollback_window_steps} steps, where max_rollbacks is "
                f"{self.max_rollbacks}"
            )
        elif self.action == "skip" and consecutive_anomalies >= MAX_CONSECUTIVE_ANOMALIES[self.action]:
            reason = f", {consecutive_anomalies} steps in a row"
        else:
            return
        raise DivergedError(
            f"training diverges {occurrence}{reason}: lower the learning rate, clip the gradients, or look at the data"
        )

    def _roll_back(self, trainer: pl.Trainer, module: pl.LightningModule, since_step: int) -> None:
        assert self._recovery is not None
        step = trainer.global_step
        self._detectors[0].count_anomaly(step)
        self._raise_if_diverged(self._detectors[0], f"since step {since_step}")
        store, writer = self._recovery.store, self._recovery.save_coordinator.writer
        other_callbacks = [
            callback for callback in internals.callbacks(trainer) if not isinstance(callback, CheckpointRecovery)
        ]
        checkpoint = rollback.roll_back(
            trainer, module, store, writer, other_callbacks, since_step, self._rollback_steps
        )
        self._recovery.monitored_metric.reset()  # what was validated was other weights
        detector_states = checkpoint["callbacks"].get(self.state_key, {"detectors": {}})["detectors"]
        # since the last time, no optimizer took a healthy step with trusted weights
        has_shifted = bool(self._rollback_steps) and since_step <= self._rollback_steps[-1] + len(trainer.optimizers)
        for index, detector in self._detectors.items():
            detector.roll_back(None if has_shifted else detector_states.get(str(index)))  # its losses were others then
        self._rollback_steps.append(step)
        self._lr_scale.factor *= self.lr_factor
        self.rollbacks += 1
        self._diverged_since, self._must_save, self._has_unlogged_values = None, True, True
        lr_note = f", with {self._lr_scale.factor:.3g} of the learning rate" if self._lr_scale.factor < 1 else ""
        rank_zero_warn(
            f"step {step}: the weights are again those of step {checkpoint['global_step']}, the data goes on{lr_note}"
            + (
                "; with these too the first step was a spike: taken for the new size of the numbers"
                if has_shifted
                else ""
            )
        )

    def _detach(self) -> None:
        while self._undo_functions:
            self._undo_functions.pop()()
        self._step_monitor = None


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    """Whether the training ends with the epoch that ends now."""
    max_epochs = trainer.max_epochs
    return (
        trainer.should_stop
        or (max_epochs is not None and max_epochs != -1 and trainer.current_epoch + 1 >= max_epochs)
        or (trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps)
    )

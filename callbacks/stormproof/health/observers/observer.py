"""Observes a run and provides its measurements as a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from stormproof.gradients.measurement import GradientMeasurement
from stormproof.health.observations.batches import Batches
from stormproof.health.observations.data import Data
from stormproof.health.observations.non_finite import NonFiniteOrigin
from stormproof.health.observations.ranks import RankComputeTimes, Ranks
from stormproof.health.observations.timing import Timing
from stormproof.health.observers.data_wait import DataWaitTimer, describe_loader
from stormproof.health.observers.loss.baselines import BaselineEvaluator
from stormproof.health.observers.loss.loss_history import LossHistory
from stormproof.health.observers.loss.objective import Objective
from stormproof.health.observers.loss.target_pool import ConstantTargetCounter
from stormproof.health.observers.optimization import OptimizationObserver
from stormproof.health.observers.rank_compute_time import ComputeTimer
from stormproof.health.observers.torch_losses import LossRecorder
from stormproof.health.observers.tracing.non_finite_origin import locate_non_finite
from stormproof.health.observers.tracing.provenance import BATCH_DEPTH, batch_size, iter_tensors
from stormproof.health.observers.tracing.step_trace import StepTrace
from stormproof.health.observers.tracing.trace_history import TraceHistory
from stormproof.health.observers.tracing.traced_step import trace_next_step
from stormproof.health.observers.unit_samples import UnitSamples, UnitSource
from stormproof.health.record import Record
from stormproof.lightning import internals
from stormproof.lightning.layer_names import get_layer_name
from stormproof.lightning.logging_steps import has_passed_logging_step
from stormproof.lightning.optimizer_step import get_scaler
from stormproof.probe.budget import EXTRA_OFFSETS, Cadence
from stormproof.probe.probe import Probe
from stormproof.units.module_kinds import is_compiled

EARLY_STEPS = frozenset({0, 1, 2, 4, 7, 9, 12, 14, 17, 19, 24, 29, 34, 39, 44, 49, 59, 69, 79, 89, 99})
"""Steps, from 0, whose batches are traced. Most mistakes show in the first steps."""


class GradientSource(Protocol):
    """Source of gradient measurements, for example :class:`stormproof.GradientNormMonitor`."""

    @property
    def history(self) -> list[GradientMeasurement]:
        """Last measurements, oldest first."""
        ...


class TrainingObserver:
    """Observes a run.

    Args:
        trainer: Trainer at the start of training.
        module: Module to observe.
        gradient_source: Source of gradient measurements, if any.
        unit_source: Source of unit measurements, if any.
        loss: Loss function of (preds, target) given by the user, if any.
        validation_metric: Name of a validation metric, if any.
        cadence: Cadence of the due steps, in addition to :data:`EARLY_STEPS`.
        traces_steps: Whether to trace due steps. If False, the run is diagnosed after these steps without a trace.
        times_ranks: Whether to measure the compute time of this rank, if there are several.

    Attributes:
        batches: Number of batches so far.
        rank_times: Compute times of the ranks. None with a single rank.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        gradient_source: GradientSource | None,
        unit_source: UnitSource | None,
        loss: Callable[..., Any] | None,
        validation_metric: str | None,
        cadence: Cadence,
        *,
        traces_steps: bool,
        times_ranks: bool,
    ) -> None:
        self._trainer, self._module = trainer, module
        self._gradient_source, self._unit_samples = gradient_source, UnitSamples(module, unit_source)
        self._validation_metric, self._cadence, self._traces_steps = validation_metric, cadence, traces_steps
        self._probe = Probe.of(trainer)
        self._has_grad_scaler = get_scaler(trainer) is not None
        self._layer_names = {id(parameter): get_layer_name(name) for name, parameter in module.named_parameters()}
        self._is_traceable = not any(is_compiled(submodule) for submodule in module.modules())
        is_untimed = trainer.world_size == 1 or not self._is_traceable or not times_ranks
        self._compute_timer = None if is_untimed else ComputeTimer(module, trainer.strategy.root_device)
        self._data_wait_timer = DataWaitTimer(self._compute_timer)
        self._stop_data_wait_timer = internals.call_between_batches(
            trainer, self._data_wait_timer.on_fetch_start, run_last=True
        )
        self._diagnosis_step: int | None = None  # of an extra diagnosis
        self._loss_history = LossHistory(self.request_extra_measurements)
        self._optimization = OptimizationObserver(trainer, module, uses_grad_scaler=self._has_grad_scaler)
        self._trace_history = TraceHistory()
        self._constant_target_counter = ConstantTargetCounter()
        self._targets_depend_on_inputs: bool | None = None
        self._baseline_evaluator = BaselineEvaluator(module, loss)
        self._validation_losses = ValidationLosses(module, is_traceable=self._is_traceable)
        self._batch: Any = None
        self._batch_idx = self._batch_size = self._backward_count = 0
        self._step_trace: StepTrace | None = None
        self._stop_trace: Callable[[], None] | None = None
        self._step_output: Any = None
        self._non_finite: NonFiniteOrigin | None = None
        self._has_new_non_finite = False  # in the current batch
        self._step = trainer.global_step - 1  # of the last batch
        self._is_due_step = False
        self._observed_step, self._epoch = trainer.global_step, 0
        self.batches = self._batches_with_backward = 0
        self._planned_steps, self._accumulated_batches = _planned_steps(trainer), trainer.accumulate_grad_batches
        self._loader_name, self._num_workers = describe_loader(trainer)
        self.rank_times: RankComputeTimes | None = None
        self._weight_difference = 0.0

    @property
    def steps(self) -> int:
        """Number of optimizer steps so far. Derived from batches if a module steps optimizers without Lightning."""
        return self._trainer.global_step or self.batches // self._accumulated_batches

    def stop(self) -> None:
        """Removes all hooks."""
        self._stop_data_wait_timer()
        self._data_wait_timer.stop()
        if self._compute_timer is not None:
            self._compute_timer.stop()
        self._end_trace()
        self._validation_losses.stop()
        self._optimization.stop()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Starts a batch and traces it if it is due."""
        self._data_wait_timer.on_batch_start()
        if self._compute_timer is not None:
            self._compute_timer.on_batch_start()
        self._batch, self._batch_idx, self._backward_count = batch, batch_idx, 0
        self._batch_size = batch_size(batch) or 0
        self._end_trace()
        step = self.steps
        if step != self._step:
            is_due = self._cadence.is_due(step, self._step)
            self._is_due_step = is_due or step in EARLY_STEPS
            self._step = step
        if self._is_due_step and self._traces_steps:
            self._begin_trace()

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Records the loss of a batch and locates the origin of a NaN or infinity."""
        if self._compute_timer is not None:
            self._compute_timer.on_before_backward()
        self._backward_count += 1
        self._batches_with_backward += self._backward_count == 1
        self._loss_history.have_one_backward &= self._backward_count == 1
        step, batch_loss = self._trainer.global_step, self._probe.batch_loss(loss)
        if isinstance(batch_loss, torch.Tensor):
            self._loss_history.add_on_device(step, batch_loss)
            return
        value = batch_loss * self._loss_divisor
        self._loss_history.add(step, value)
        if not math.isfinite(value) and self._non_finite is None and not self._has_grad_scaler:
            self._has_new_non_finite = True
            self._non_finite = locate_non_finite(
                self._module, self._batch, self._batch_idx, step, self._layer_names, self._trace_history.layer_order,
                is_traceable=self._is_traceable,
            )  # fmt: skip

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Records which layers have gradients."""
        self._optimization.on_before_optimizer_step(optimizer, is_traced=self._step_trace is not None)

    def on_train_batch_end(self) -> bool:
        """Ends the batch. Returns whether there are new measurements to diagnose."""
        is_traced = self._step_trace is not None
        if is_traced:
            self._data_wait_timer.exclude_batch()
        self._observed_step = self._trainer.global_step
        self.batches += 1
        if has_passed_logging_step(self._trainer, self._step, self._observed_step):
            self._read_device_losses()
        if is_traced:
            self._finish_trace()
        if self._constant_target_counter.samples is not None:
            self._constant_target_counter.add(
                list(iter_tensors(self._batch, BATCH_DEPTH)), self._baseline_evaluator.target_indices, self._batch_size
            )
        has_news = self._is_due_step or self._has_new_non_finite
        if self._diagnosis_step is not None and self._step >= self._diagnosis_step:
            has_news, self._diagnosis_step = True, None
        self._batch, self._has_new_non_finite = None, False
        return has_news

    def request_extra_measurements(self) -> None:
        """Requests measurements of the next steps, and a diagnosis after the last one even if none is due."""
        self._probe.request_extra_measurements()
        if self._diagnosis_step is None:
            self._diagnosis_step = self._step + EXTRA_OFFSETS[-1]

    def on_train_epoch_end(self, weight_difference: float) -> None:
        """Ends an epoch in which the weights of the ranks differ by ``weight_difference``."""
        self._epoch = self._trainer.current_epoch + 1
        self._observed_step = self._trainer.global_step
        self._weight_difference = max(self._weight_difference, weight_difference)

    def on_validation_start(self) -> None:
        """Starts a validation pass."""
        self._validation_losses.on_validation_start()

    def on_validation_batch_start(self, batch: Any) -> None:
        """Starts a validation batch."""
        self._validation_losses.on_validation_batch_start(batch, self._baseline_evaluator.objective)

    def on_validation_batch_end(self, outputs: Any) -> None:
        """Records the loss of a validation batch."""
        self._validation_losses.on_validation_batch_end(outputs, self._baseline_evaluator.objective)

    def on_validation_end(self) -> None:
        """Ends a validation pass."""
        self._data_wait_timer.exclude_batch()
        losses = self._validation_losses.read()
        self._observed_step = self._trainer.global_step
        self._read_device_losses()
        metric = self._trainer.callback_metrics.get(self._validation_metric or "")
        self._loss_history.add_validation(
            self._observed_step, losses, None if metric is None else float(metric), self._validation_losses.samples
        )

    def compute_times(self) -> tuple[list[float], list[tuple[float, float]]]:
        """Returns the compute times of this rank, and the seconds of waiting and of work of the last batches."""
        return self._compute_timer.seconds() if self._compute_timer else [], list(self._data_wait_timer.batches)

    def observe(self) -> Record:
        """Returns all measurements so far. Synchronizes with the device."""
        self._read_device_losses()
        if not self._targets_depend_on_inputs:  # more samples may show a dependence
            self._targets_depend_on_inputs = self._baseline_evaluator.dependence_test.is_dependent()
        identical_targets = self._constant_target_counter.samples
        pool = self._baseline_evaluator.target_pool
        if self._baseline_evaluator.computes_targets and not pool.is_empty:
            identical_targets = pool.identical_samples  # the loss receives computed targets, not those of the batch
        measurements = [] if self._gradient_source is None else self._gradient_source.history
        if self._non_finite is None and not self._has_grad_scaler and measurements:
            self._non_finite = self._find_non_finite_gradient(measurements[-1])
        step = self._observed_step
        return Record(
            step=step,
            epoch=self._epoch,
            planned_steps=self._planned_steps,
            batches=Batches(
                count=self.batches,
                per_step=self._accumulated_batches,
                with_backward=self._batches_with_backward,
            ),
            losses=self._loss_history.observe(),
            gradients=self._optimization.observe_gradients(tuple(measurements)),
            weights=self._trace_history.observe_weights(),
            optimizers=self._optimization.observe_optimizers(step),
            data=Data(self._trace_history.input_stats, identical_targets, self._targets_depend_on_inputs),
            predictions=self._trace_history.observe_predictions(),
            units=self._unit_samples.observe(self._trace_history.mode_functions),
            timing=Timing(tuple(self._data_wait_timer.batches), self._loader_name, self._num_workers),
            ranks=Ranks(self.rank_times, self._weight_difference),
            non_finite=self._non_finite,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the measurements that later ones are compared with, as plain values."""
        return {
            **self._loss_history.state_dict(),
            **self._trace_history.state_dict(),
            "epoch": self._epoch,
            "same_targets": self._constant_target_counter.samples,
            "rates": self._optimization.learning_rates.state_dict(),
            "targets": self._baseline_evaluator.target_pool.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the measurements."""
        self._loss_history.load_state_dict(state)
        self._trace_history.load_state_dict(state)
        self._epoch = state["epoch"]
        self._constant_target_counter.samples = state["same_targets"]
        self._optimization.learning_rates.load_state_dict(state["rates"])
        self._optimization.learning_rates.update(self._trainer.global_step)
        self._baseline_evaluator.target_pool.load_state_dict(state["targets"])

    @property
    def _loss_divisor(self) -> int:
        """Divisor that Lightning applies to each loss: ``accumulate_grad_batches``, or 1 with manual optimization."""
        return self._trainer.accumulate_grad_batches if self._module.automatic_optimization else 1

    def _read_device_losses(self) -> None:
        """Reads pending losses from the device."""
        non_finite_step = self._loss_history.read_device(self._loss_divisor)
        if non_finite_step is not None and self._non_finite is None and not self._has_grad_scaler:
            self._non_finite = NonFiniteOrigin(non_finite_step, self._batch_idx, "loss", "", in_data=False)

    def _find_non_finite_gradient(self, measurement: GradientMeasurement) -> NonFiniteOrigin | None:
        """Returns the layer nearest to the loss whose gradient is not finite."""
        layers = [layer for layer, norm in measurement.norms.items() if not math.isfinite(norm)]
        if not layers:
            return None
        ordered_layers = [layer for layer in self._trace_history.layer_order if layer in layers] or layers
        return NonFiniteOrigin(measurement.step - 1, self._batch_idx, "gradient", ordered_layers[-1], in_data=False)

    def _begin_trace(self) -> None:
        """Traces the next training step."""
        self._cadence.slows_step = True
        self._step_trace = StepTrace(self._layer_names, list(iter_tensors(self._batch, BATCH_DEPTH)), self._batch_size)
        self._step_output = None
        context = self._step_trace.origins if self._is_traceable else nullcontext()
        self._trace_history.add_weights(self._trainer.global_step, self._module)
        self._stop_trace = trace_next_step(self._module, "training_step", context, self._set_output)

    def _end_trace(self) -> None:
        """Cancels the trace and drops its tensors."""
        if self._stop_trace is not None:
            self._stop_trace()
        if self._step_trace is not None:
            self._step_trace.release_tensors()
        self._stop_trace, self._step_trace, self._step_output = None, None, None

    def _set_output(self, output: Any) -> None:
        """Keeps the return value of the traced step."""
        self._step_output = output

    def _finish_trace(self) -> None:
        """Adds the measurements of the traced step."""
        trace, output, step = self._step_trace, self._step_output, self._observed_step
        assert trace is not None
        if trace.origins.error is not None:
            raise trace.origins.error
        self._optimization.learning_rates.update(step)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        with torch.no_grad():
            have_one_backward = self._loss_history.have_one_backward
            predictions, comparison = self._baseline_evaluator.compare(
                trace, output, loss, step, self._trainer.current_epoch, has_single_loss=have_one_backward
            )
            self._trace_history.add(trace, step, predictions, comparison)
        self._optimization.finish_trace(trace, loss, step, is_traceable=self._is_traceable)
        self._end_trace()


def _planned_steps(trainer: pl.Trainer) -> int | None:
    """Returns the number of optimizer steps of the whole run. None if unlimited."""
    batches = trainer.num_training_batches
    max_steps = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    if trainer.max_epochs is None or trainer.max_epochs < 0 or not math.isfinite(batches):
        return max_steps
    steps = trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    return steps if max_steps is None else min(steps, max_steps)


class ValidationLosses:
    """Collects the loss of each validation batch.

    The loss of a batch is the first available of:

    - the loss that ``validation_step`` returns,
    - the value of the training loss function that ``validation_step`` calls, unless the network is compiled,
    - the training loss function of the ``preds`` and ``target`` that ``validation_step`` returns.

    A batch is traced only if the previous one did not return its loss. Only :meth:`read` synchronizes with the device.

    Args:
        module: Module to validate.
        is_traceable: Whether torch functions can be traced in the step.
    """

    def __init__(self, module: pl.LightningModule, *, is_traceable: bool) -> None:
        self._module, self._is_traceable = module, is_traceable
        self._loss_recorder: LossRecorder | None = None
        self._stop_trace: Callable[[], None] | None = None
        self._losses: list[torch.Tensor] = []
        self._returns_loss = False
        self.samples: int | None = None  # in the pass; None if a batch has no tensors

    def on_validation_start(self) -> None:
        """Starts a pass."""
        self._losses, self.samples = [], 0

    def read(self) -> list[float]:
        """Returns the losses of the batches of the pass."""
        return torch.stack([loss.float().mean() for loss in self._losses]).tolist() if self._losses else []

    def on_validation_batch_start(self, batch: Any, objective: Objective | None) -> None:
        """Traces the next step for calls of the training loss function."""
        self.stop()
        size = batch_size(batch)
        self.samples = None if self.samples is None or size is None else self.samples + size
        if self._is_traceable and not self._returns_loss and objective is not None and objective.name:
            self._loss_recorder = LossRecorder()
            self._stop_trace = trace_next_step(self._module, "validation_step", self._loss_recorder, lambda _: None)

    def on_validation_batch_end(self, outputs: Any, objective: Objective | None) -> None:
        """Adds the loss of the batch, if it is known."""
        step_output = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        recorded_losses = [] if self._loss_recorder is None else self._loss_recorder.values
        self.stop()
        loss = step_output.get("loss")
        self._returns_loss = isinstance(loss, torch.Tensor)
        if objective is not None and not isinstance(loss, torch.Tensor):
            values = [value for name, value in recorded_losses if name == objective.name]
            if values:
                loss = values[-1]
            else:
                with objective.undo_side_effects(self._module):
                    loss = objective.compute(step_output.get("preds"), step_output.get("target"))
        if isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach())

    def stop(self) -> None:
        """Cancels the trace."""
        if self._stop_trace is not None:
            self._stop_trace()
        self._stop_trace = self._loss_recorder = None

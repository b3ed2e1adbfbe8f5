"""Fills the record of a run during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from statistics import fmean
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from stormproof.divergence.spike_detector import SpikeDetector
from stormproof.gradients.measurement import GradientMeasurement
from stormproof.health.measures.dead_shares import choose_measurements
from stormproof.health.observers.baselines import BaselineEvaluator
from stormproof.health.observers.constant_targets import ConstantTargetCounter
from stormproof.health.observers.data_wait import DataWaitTimer
from stormproof.health.observers.gradient_reset import ZeroGradCheck
from stormproof.health.observers.learning_rates import LearningRates
from stormproof.health.observers.non_finite_origin import locate_non_finite
from stormproof.health.observers.parameter_groups import (
    count_entries_outside_optimizers,
    count_unoptimized_entries,
    find_duplicated_layers,
    find_layers_with_gradient,
    find_unreached_layers,
    frozen_layers,
    measure_weights,
)
from stormproof.health.observers.provenance import batch_size, iter_tensors
from stormproof.health.observers.rank_compute_time import ComputeTimer
from stormproof.health.observers.step_trace import StepTrace
from stormproof.health.observers.traced_step import trace_next_step
from stormproof.health.observers.training_loader import describe_loader
from stormproof.health.observers.validation_losses import ValidationLosses
from stormproof.health.record import Comparison, NonFiniteOrigin, Record, TracedStep, ValidationPass
from stormproof.lightning import internals
from stormproof.lightning.layer_names import get_layer_name
from stormproof.lightning.logging_steps import has_passed_logging_step
from stormproof.lightning.optimizer_step import find_optimizer_index, get_scaler
from stormproof.probe.budget import Cadence
from stormproof.probe.probe import Probe
from stormproof.units.module_kinds import is_compiled
from stormproof.units.unit_activity import MIN_INPUTS, UnitActivity

EARLY_STEPS = frozenset({0, 1, 2, 4, 7, 9, 12, 14, 17, 19, 24, 29, 34, 39, 44, 49, 59, 69, 79, 89, 99})
"""Steps, from 0, whose batches are traced. Most mistakes show in the first steps."""
STRUCTURE_STEPS = 3
"""Number of steps after which the set of parameters with a gradient is final."""
MAX_TRACES = 64
"""Maximum number of traces, in addition to the first four."""
MAX_VALIDATIONS = 8
"""Maximum number of validation passes, in addition to the best one."""
MAX_FIRST_LOSSES = 20
"""Number of first losses to keep permanently."""


class GradientSource(Protocol):
    """Source of gradient measurements, for example :class:`stormproof.GradientNormMonitor`."""

    @property
    def history(self) -> list[GradientMeasurement]:
        """Last measurements, oldest first."""
        ...


class UnitSource(Protocol):
    """Source of unit measurements, for example :class:`stormproof.DeadNeuronDetector`."""

    @property
    def activity(self) -> dict[str, UnitActivity]:
        """Activity by layer from the last validation pass, or from the last training epoch before the first pass."""
        ...

    @property
    def running_activity(self) -> dict[str, UnitActivity]:
        """Activity by layer in the current training epoch, on this rank."""
        ...


class TrainingObserver:
    """Observes a run and fills its :class:`Record`.

    Args:
        trainer: Trainer at the start of training.
        module: Module to observe.
        gradient_source: Source of gradient measurements.
        unit_source: Source of unit measurements.
        loss: Loss function of (preds, target) given by the user, if any.
        validation_metric: Name of a validation metric, if any.
        cadence: Cadence of the traced steps after the early ones.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        gradient_source: GradientSource,
        unit_source: UnitSource,
        loss: Callable[..., Any] | None,
        validation_metric: str | None,
        cadence: Cadence,
    ) -> None:
        self._trainer, self._module = trainer, module
        self._gradient_source, self._unit_source = gradient_source, unit_source
        self._validation_metric, self._cadence = validation_metric, cadence
        self._probe = Probe.of(trainer)
        self._layer_names = {id(parameter): get_layer_name(name) for name, parameter in module.named_parameters()}
        self._is_traceable = not any(is_compiled(submodule) for submodule in module.modules())
        self._learning_rates = LearningRates(trainer.optimizers)
        is_untimed = trainer.world_size == 1 or not self._is_traceable
        self._compute_timer = None if is_untimed else ComputeTimer(module, trainer.strategy.root_device)
        self._data_wait_timer = DataWaitTimer(self._compute_timer)
        self._stop_data_wait_timer = internals.call_between_batches(
            trainer, self._data_wait_timer.on_fetch_start, run_last=True
        )
        self._constant_target_counter = ConstantTargetCounter()
        self._sampled_activity: dict[str, UnitActivity] = {}
        self._has_batch_norm = any(
            isinstance(submodule, _BatchNorm) and submodule.track_running_stats for submodule in module.modules()
        )
        self._baseline_evaluator = BaselineEvaluator(module, loss)
        self._validation_losses = ValidationLosses(module, is_traceable=self._is_traceable)
        self._zero_grad_checks = {index: ZeroGradCheck(optimizer) for index, optimizer in enumerate(trainer.optimizers)}
        self._batch: Any = None
        self._batch_idx = self._batch_size = self._backward_count = 0
        self._device_losses: list[tuple[int, torch.Tensor]] = []
        self._losses_since_validation = [0.0, 0]  # sum and number of losses
        self._spike_detector = SpikeDetector()
        self._stepped_optimizers: set[int] = set()  # optimizers
        self._step_trace: StepTrace | None = None
        self._stop_trace: Callable[[], None] | None = None
        self._step_output: Any = None
        self._has_new_non_finite = False  # in the current batch
        self._step = trainer.global_step - 1  # of the last batch
        self._is_traced_step = False
        self.record = Record(planned_steps=_planned_steps(trainer), uses_grad_scaler=get_scaler(trainer) is not None)
        self.record.accumulate_grad_batches = trainer.accumulate_grad_batches
        self.record.loader_name, self.record.num_workers = describe_loader(trainer)
        self.record.duplicated_layers = find_duplicated_layers(module, trainer.optimizers)
        self.record.groups = self._learning_rates.update(trainer.global_step)

    def stop(self) -> None:
        """Removes all hooks."""
        self._stop_data_wait_timer()
        self._data_wait_timer.stop()
        if self._compute_timer is not None:
            self._compute_timer.stop()
        self._end_trace()
        self._validation_losses.stop()
        for check in self._zero_grad_checks.values():
            check.stop()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Starts a batch and traces it if it is due."""
        self._data_wait_timer.on_batch_start()
        if self._compute_timer is not None:
            self._compute_timer.on_batch_start()
        self._batch, self._batch_idx, self._backward_count = batch, batch_idx, 0
        self._batch_size = batch_size(batch) or 0
        self._end_trace()
        # global_step stays 0 if a module in manual optimization steps its optimizers without Lightning
        step = self._trainer.global_step or self.record.batches // self.record.accumulate_grad_batches
        if step != self._step:
            self._is_traced_step = step in EARLY_STEPS or self._cadence.is_due(step, self._step)
            self._step = step
        if self._is_traced_step:
            self._begin_trace()

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Records the loss of a batch and locates the origin of a NaN or infinity."""
        if self._compute_timer is not None:
            self._compute_timer.on_before_backward()
        self._backward_count += 1
        self.record.backward_batches += self._backward_count == 1
        self.record.has_single_loss &= self._backward_count == 1
        step, batch_loss = self._trainer.global_step, self._probe.batch_loss(loss)
        if isinstance(batch_loss, torch.Tensor):
            self._device_losses.append((step, batch_loss))
            return
        value = batch_loss * self._loss_divisor
        self._add_loss(step, value)
        if not math.isfinite(value) and self.record.non_finite_origin is None and get_scaler(self._trainer) is None:
            self._has_new_non_finite = True
            self.record.non_finite_origin = locate_non_finite(
                self._module, self._batch, self._batch_idx, step, self._layer_names, self.record.layer_order,
                is_traceable=self._is_traceable,
            )  # fmt: skip

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Records which layers have gradients."""
        if self._step_trace is None or (index := find_optimizer_index(self._trainer, optimizer)) is None:
            return
        optimizers = self._trainer.optimizers
        if not self.record.layers_with_gradient and all(
            module_parameter.grad is None for module_parameter in self._module.parameters()
        ):
            self.record.steps_without_gradient += 1
        new_layers = find_layers_with_gradient(self._module, self.record.layers_with_gradient)
        if new_layers and not self.record.layers_with_gradient:
            self.record.first_gradient_step = self._trainer.global_step
        self.record.layers_with_gradient |= new_layers
        self._stepped_optimizers.add(index)
        if self._trainer.global_step < STRUCTURE_STEPS and len(self._stepped_optimizers) == len(optimizers):
            self.record.unoptimized_entries, foreign_parameters = count_unoptimized_entries(self._module, optimizers)
            self.record.foreign_parameters = foreign_parameters if self.record.unoptimized_entries else 0

    def on_train_batch_end(self) -> bool:
        """Records the batch. Returns whether there are new measurements to diagnose."""
        record, is_traced = self.record, self._step_trace is not None
        if is_traced:
            self._data_wait_timer.exclude_batch()
        record.step = self._trainer.global_step
        record.batches += 1
        if self._device_losses and has_passed_logging_step(self._trainer, self._step, record.step):
            self._read_losses()
        if is_traced:
            record.groups = self._learning_rates.update(record.step)
            self._finish_trace()
        if self._constant_target_counter.samples is not None:
            self._constant_target_counter.add(
                list(iter_tensors(self._batch)), self._baseline_evaluator.target_indices, self._batch_size
            )
        has_news = is_traced or self._has_new_non_finite
        if has_news:
            self.update_record()
        self._batch, self._has_new_non_finite = None, False
        return has_news

    def compute_times(self) -> tuple[list[float], list[tuple[float, float]]]:
        """Returns the compute times of this rank, and the seconds of waiting and of work of the last batches."""
        return self._compute_timer.seconds() if self._compute_timer else [], list(self._data_wait_timer.batches)

    def update_record(self) -> None:
        """Reads pending losses from the device and the measurements of the monitors."""
        record = self.record
        self._read_losses()
        for check in self._zero_grad_checks.values():
            if check.is_done:
                check.stop()
        record.retained_gradients = {
            index: (check.stale_steps, check.checked_steps) for index, check in self._zero_grad_checks.items()
        }
        record.observed_optimizer_step = record.observed_optimizer_step or any(
            check.has_stepped for check in self._zero_grad_checks.values()
        )
        record.batch_waits = list(self._data_wait_timer.batches)
        record.constant_target_samples = self._constant_target_counter.samples
        if not record.targets_depend_on_inputs:  # more samples may show a dependence
            record.targets_depend_on_inputs = self._baseline_evaluator.dependence_test.is_dependent()
        record.gradients = self._gradient_source.history
        exact_activity = {name: entry for name, entry in self._unit_source.activity.items() if entry.exact}
        for name, running_sample in self._unit_source.running_activity.items():
            # keeps the sample of the previous epoch until the current one is large enough
            if running_sample.inputs >= MIN_INPUTS or name not in self._sampled_activity:
                self._sampled_activity[name] = running_sample
        record.unit_activity, lagging_units = choose_measurements(
            self._sampled_activity, exact_activity, batch_norm=self._has_batch_norm
        )
        if self._sampled_activity.keys() & exact_activity.keys():
            record.lagging_units = lagging_units
        last_measurement = record.gradients[-1] if record.gradients else None
        if last_measurement is not None and record.non_finite_origin is None and not record.uses_grad_scaler:
            non_finite_layers = [layer for layer, norm in last_measurement.norms.items() if not math.isfinite(norm)]
            if non_finite_layers:
                ordered_layers = [
                    layer for layer in record.layer_order if layer in non_finite_layers
                ] or non_finite_layers
                record.non_finite_origin = NonFiniteOrigin(
                    last_measurement.step - 1, self._batch_idx, "gradient", ordered_layers[-1], in_data=False
                )

    def on_train_epoch_end(self, replica_difference: float) -> None:
        """Ends an epoch in which the weights of the ranks differ by ``replica_difference``."""
        self.record.epoch = self._trainer.current_epoch + 1
        self.record.step = self._trainer.global_step
        self.record.replica_difference = max(self.record.replica_difference, replica_difference)
        self.update_record()

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
        record, losses = self.record, self._validation_losses.read()
        record.step = self._trainer.global_step
        self.update_record()
        loss_sum, count = self._losses_since_validation
        self._losses_since_validation = [0.0, 0]
        training_loss = loss_sum / count if count else None
        if losses:
            samples = self._validation_losses.samples
            record.add_validation(
                ValidationPass(record.step, tuple(losses), fmean(losses), training_loss, samples), MAX_VALIDATIONS
            )
        elif self._validation_metric is not None and self._validation_metric in self._trainer.callback_metrics:
            value = float(self._trainer.callback_metrics[self._validation_metric])
            record.add_validation(
                ValidationPass(record.step, (), value, training_loss, self._validation_losses.samples), MAX_VALIDATIONS
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the measurements that later ones are compared with, as plain values."""
        record = self.record
        return {
            "first": list(record.first_losses),
            "recent": [list(entry) for entry in record.recent_losses],
            "comparisons": [list(vars(entry).values()) for entry in record.comparisons],
            "validations": [
                [entry.step, list(entry.losses), entry.loss, entry.training_loss, entry.samples]
                for entry in record.validations
            ],
            "epoch": record.epoch,
            "same_targets": self._constant_target_counter.samples,
            "rates": self._learning_rates.state_dict(),
            "since_validated": list(self._losses_since_validation),
            "targets": self._baseline_evaluator.target_pool.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the measurements."""
        record = self.record
        record.first_losses = list(state["first"])
        record.recent_losses.extend((step, loss) for step, loss in state["recent"])
        for _, loss in record.recent_losses:
            self._check_loss(loss)
        record.comparisons = [Comparison(*values) for values in state["comparisons"]]
        record.validations = [
            # samples are absent in checkpoints of earlier versions
            ValidationPass(step, tuple(losses), loss, training_loss, *samples)
            for step, losses, loss, training_loss, *samples in state["validations"]
        ]
        record.epoch = state["epoch"]
        self._constant_target_counter.samples = state["same_targets"]
        self._learning_rates.load_state_dict(state["rates"])
        record.groups = self._learning_rates.update(self._trainer.global_step)
        self._losses_since_validation = list(state["since_validated"])
        self._baseline_evaluator.target_pool.load_state_dict(state["targets"])

    @property
    def _loss_divisor(self) -> int:
        """Divisor that Lightning applies to each loss: ``accumulate_grad_batches``, or 1 with manual optimization."""
        return self._trainer.accumulate_grad_batches if self._module.automatic_optimization else 1

    def _add_loss(self, step: int, loss: float) -> None:
        """Adds a loss to the record."""
        if len(self.record.first_losses) < MAX_FIRST_LOSSES:
            self.record.first_losses.append(loss)
        self.record.recent_losses.append((step, loss))
        self._check_loss(loss)
        self._losses_since_validation = [self._losses_since_validation[0] + loss, self._losses_since_validation[1] + 1]

    def _check_loss(self, loss: float) -> None:
        """Requests measurements of the next steps if the loss is not finite or far above previous ones."""
        if not self.record.has_single_loss:
            return
        if not math.isfinite(loss) or self._spike_detector.detect(loss) is not None:
            self._probe.report_suspicion()
        else:
            self._spike_detector.add(loss)

    def _read_losses(self) -> None:
        """Reads pending losses from the device."""
        if not self._device_losses:
            return
        steps, losses = zip(*self._device_losses, strict=True)
        self._device_losses = []
        for step, loss in zip(steps, torch.stack(losses).tolist(), strict=True):
            self._add_loss(step, loss * self._loss_divisor)
            if not math.isfinite(loss) and self.record.non_finite_origin is None and not self.record.uses_grad_scaler:
                self.record.non_finite_origin = NonFiniteOrigin(step, self._batch_idx, "loss", "", in_data=False)

    def _begin_trace(self) -> None:
        """Traces the next training step."""
        self._cadence.slows_step = True
        self._step_trace = StepTrace(self._layer_names, list(iter_tensors(self._batch)), self._batch_size)
        self._step_output = None
        context = self._step_trace.origins if self._is_traceable else nullcontext()
        self._stop_trace = trace_next_step(
            self._module, "training_step", context, self._set_output, before_step=self._record_weights
        )

    def _end_trace(self) -> None:
        """Cancels the trace and drops its tensors."""
        if self._stop_trace is not None:
            self._stop_trace()
        if self._step_trace is not None:
            self._step_trace.release_tensors()
        self._stop_trace, self._step_trace, self._step_output = None, None, None

    def _record_weights(self) -> None:
        """Records the weights at the start of a traced step."""
        self.record.add_weights(self._trainer.global_step, measure_weights(self._module), MAX_TRACES)

    def _set_output(self, output: Any) -> None:
        """Keeps the return value of the traced step."""
        self._step_output = output

    def _finish_trace(self) -> None:
        """Adds the measurements of the traced step to the record."""
        trace, record, output, step = self._step_trace, self.record, self._step_output, self._trainer.global_step
        assert trace is not None
        if trace.origins.error is not None:
            raise trace.origins.error
        loss = output.get("loss") if isinstance(output, Mapping) else output
        with torch.no_grad():
            prediction_stats, comparison = self._baseline_evaluator.compare(
                trace, output, loss, step, self._trainer.current_epoch, has_single_loss=record.has_single_loss
            )
            layers = tuple(trace.layer_calls)
        if comparison is not None:
            record.comparisons = [*record.comparisons, comparison][-2 * MAX_TRACES :]
        record.add_trace(
            TracedStep(
                step, layers, tuple(trace.activation_calls), tuple(trace.broadcast_mismatches), prediction_stats
            ),
            MAX_TRACES,
        )
        if layers and not record.layer_order:
            record.layer_order = list(dict.fromkeys(call.layer for call in layers))
        record.input_stats = record.input_stats or trace.compute_input_stats()
        record.unregistered_entries = max(
            record.unregistered_entries,
            count_entries_outside_optimizers(trace.unregistered_parameters, self._trainer.optimizers),
        )
        if step <= STRUCTURE_STEPS and self._is_traceable and self._module.automatic_optimization:
            record.frozen_layers = frozen_layers(self._module)
            if isinstance(loss, torch.Tensor):
                record.detached_layers, record.unused_layers = find_unreached_layers(
                    self._module,
                    self._trainer.optimizers,
                    trace.origins.origin_of(loss),
                    trace,
                    record.layers_with_gradient,
                )
        self._end_trace()


def _planned_steps(trainer: pl.Trainer) -> int | None:
    """Returns the number of optimizer steps of the whole run. None if unlimited."""
    batches = trainer.num_training_batches
    max_steps = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    if trainer.max_epochs is None or trainer.max_epochs < 0 or not math.isfinite(batches):
        return max_steps
    steps = trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    return steps if max_steps is None else min(steps, max_steps)

"""Measures gradient norms and update-to-weight ratios of each layer, and the gradient noise scale."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from stormproof.arguments import check_arguments
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.gradients.measurement import (
    GradientMeasurement,
    MeasuredParameters,
    PendingMeasurement,
    noise_scale_of_usual_batches,
)
from stormproof.gradients.noise_scale import NoiseMeter
from stormproof.internal_errors import describe_error, isolate_errors, isolated
from stormproof.lightning.gradient_clipping import call_before_clipping
from stormproof.lightning.layout import Layout
from stormproof.lightning.logged_metrics import add_callback_metrics
from stormproof.lightning.logging_steps import has_passed_logging_step, log_to_loggers
from stormproof.lightning.optimizer_step import find_optimizer_index, get_scaler, unscales_gradients
from stormproof.monitoring.monitor import Monitor, TableEntries
from stormproof.probe.budget import Cadence
from stormproof.probe.probe import Probe, close_probe


class GradientNormMonitor(Monitor):
    r"""Measures the gradient norm and the update-to-weight ratio of each layer.

    .. math:: \|g_l\| = \Big(\sum_{\theta \in l} \sum_j g_{\theta,j}^2\Big)^{1/2}, \qquad
        \|g\| = \Big(\sum_l \|g_l\|^2\Big)^{1/2}

    :math:`g` is the gradient of the whole job: reduced over ranks, accumulated, unscaled, and before clipping. A layer
    is the module that owns the parameters. By default, the first 20 steps and all logging steps are measured. Further
    steps are measured as often as ``budget`` allows. The device is synchronized only at logging steps.

    Logged values:

    | name                           | value                  | when                  |
    |--------------------------------|------------------------|-----------------------|
    | ``gradients/norm``             | total norm             | ``log_every_n_steps`` |
    | ``gradients/norm/<layer>``     | norm per layer         | ``log_every_n_steps`` |
    | ``updates/ratio``              | update-to-weight ratio | ``log_every_n_steps`` |
    | ``updates/ratio/<layer>``      | ratio per layer        | ``log_every_n_steps`` |
    | ``gradients/clipped_fraction`` | clipped steps          | ``log_every_n_steps`` |
    | ``gradients/skipped_fraction`` | skipped steps          | ``log_every_n_steps`` |
    | ``gradients/noise_scale``      | noise scale, samples   | ``log_every_n_steps`` |

    Norms and ratios are from the last measured step. Ratios are estimated from about 256 entries per tensor
    (:class:`stormproof.gradients.update_ratio.WeightSampler`). ``updates/ratio`` requires a single optimizer. The two
    fractions are over the steps in :attr:`history`, logged only if something clips gradients or skips steps. With a
    budget, they are not in ``trainer.callback_metrics``, because the measured steps depend on time.

    :attr:`noise_scale` estimates the batch size above which larger batches hardly reduce the number of steps. It
    requires gradient accumulation or DDP, automatic optimization, a loss that is a mean over samples, batches of equal
    size, and a ``history`` of at least 10. It is sent to the loggers only.

    With manual optimization, gradients are measured before ``self.clip_gradients``, but after torch's clipping
    functions.

    Args:
        every_n_steps: Interval of the measurements in optimizer steps, for each optimizer. The first step is always
            measured. Must be at least 1. If None, ``budget`` determines the interval.
        budget: Fraction of the training time that the measurements of all callbacks of a trainer may take. Must be
            above 0 and at most 1. If several callbacks set it, the smallest value applies. 0.01 if none does. It does
            not limit the first 20 steps, logging steps, and callbacks with ``every_n_steps``.
        history: Number of measurements to keep. Must be at least 1.
        table: Whether to print a table at the end of training.

    Attributes:
        first_norms: First measured norm of each layer.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> monitor = GradientNormMonitor(every_n_steps=50)
        >>> trainer = pl.Trainer(callbacks=[monitor])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> monitor.last_norms  # doctest: +SKIP
        {'total': 0.83, 'net.0': 0.41, 'net.2': 0.72}

    References:
        McCandlish et al., An empirical model of large-batch training, 2018 (noise scale).
        Pascanu et al., On the difficulty of training recurrent neural networks, 2013 (gradient norms and clipping).
    """

    @check_arguments(every_n_steps="at least 1", budget="above 0 and at most 1", history="at least 1")
    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        budget: float | None = None,
        history: int = 100,
        table: bool = True,
    ) -> None:
        super().__init__(table)
        self.every_n_steps, self.budget = every_n_steps, budget
        self._cadence = Cadence(every_n_steps)
        self.first_norms: dict[str, float] = {}
        self._measurements: deque[GradientMeasurement] = deque(maxlen=history)
        self._pending_measurements: deque[PendingMeasurement] = deque(maxlen=history)  # values are on the device
        self._last_measurements: dict[int, GradientMeasurement] = {}  # with a gradient, by optimizer
        self._loggable_measurements: dict[int, GradientMeasurement] = {}  # the loggable ones, by optimizer
        self._has_unlogged = False  # whether a step that may be logged was measured since the last logging step
        self._latest_norms_by_layer: dict[str, float] = {}  # from different steps if a layer had no gradient
        self._first_measurements: list[PendingMeasurement] = []  # pending measurements with new layers
        self._open_measurements: dict[int, PendingMeasurement] = {}  # by optimizer, before its step
        self._step_counts: dict[int, int] = {}  # started steps by optimizer
        self._last_global_steps: dict[int, int] = {}  # by optimizer; a step may compute several gradients
        self._measured_parameters: dict[tuple[int, tuple[bool, ...]], MeasuredParameters] = {}
        self._previous_step = 0
        self._has_trained = self._has_failed = False
        self._undo_functions: list[Callable[[], None]] = []
        self._noise_meter: NoiseMeter | None = None  # during training, if supported

    @property
    def history(self) -> list[GradientMeasurement]:
        """Last measurements, oldest first. Synchronizes with the device."""
        self._read_pending()
        return list(self._measurements)

    @property
    def last_norms(self) -> dict[str, float]:
        """Norms of the last measured step by layer, and ``total``. Empty before the first step.

        With several optimizers, the norms are from the last measured step of each, and ``total`` is over all of them.
        """
        self._read_pending()
        return _norms_by_layer(self._last_measurements.values())

    @property
    def noise_scale(self) -> float | None:
        r"""Noise scale :math:`\operatorname{tr}(\Sigma) / |G|^2` of the gradient, in samples, over :attr:`history`.

        :math:`\Sigma` is the covariance of the gradients of single samples, and :math:`G` their mean. Only steps with
        the most frequent batch size count. None with fewer than ten estimates, or if a mean is not positive. With
        several ranks, each rank computes an estimate, and rank 0 logs one.
        """
        return noise_scale_of_usual_batches(self.history)[0]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Resets the state, unless ``fit`` continues an earlier run."""
        destroy_gloo_before_exit()
        if stage == "fit" and trainer.global_step == 0:
            self.load_state_dict({"history": [], "first_norms": {}, "step_counts": [], "has_unlogged": False})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts measuring."""
        self._previous_step, self._has_trained, self._has_failed = trainer.global_step, False, False
        self._measured_parameters, self._last_global_steps, self._open_measurements = {}, {}, {}
        self._cadence = Probe.of(trainer).budget.add("gradients", Cadence(self.every_n_steps), self.budget)
        if len(trainer.optimizers) == 1:
            self._step_counts = {0: trainer.global_step}
        if pl_module.automatic_optimization and Layout.of(trainer).is_replicated:
            self._noise_meter = NoiseMeter(trainer, self._cadence.timed)
        self._undo_functions = [
            call_before_clipping(trainer, partial(self._measure_before_clipping, trainer, pl_module)),
            *(self._register_step_hook(optimizer, index) for index, optimizer in enumerate(trainer.optimizers)),
        ]

    @isolate_errors
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts measuring the gradient of the first batch of a step that is due."""
        if self._noise_meter is not None:
            self._noise_meter.start_batch(batch, lambda: self._is_due(trainer, 0))

    @isolate_errors
    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the gradient of the first batch of a step."""
        if self._noise_meter is not None:
            self._noise_meter.after_backward()

    @isolate_errors
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures the gradient if the step is due."""
        index, global_step = find_optimizer_index(trainer, optimizer), trainer.global_step
        if index is None or self._last_global_steps.get(index) == global_step:
            return
        self._measure(trainer, pl_module, optimizer, index, scaled=unscales_gradients(optimizer))
        self._step_counts[index] = self._step_counts.get(index, 0) + 1
        self._last_global_steps[index] = global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the last measurement at a logging step."""
        self._has_trained = True
        if self._noise_meter is not None:
            self._noise_meter.end_batch()
        previous_step, self._previous_step = self._previous_step, trainer.global_step
        logging_step = has_passed_logging_step(trainer, previous_step, self._previous_step)
        if logging_step and self._has_unlogged:
            self._log(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads pending measurements and stops measuring."""
        self._read_pending()
        self._stop(trainer)
        if self._has_trained and not self._measurements and not self._has_failed:
            rank_zero_warn(
                "No gradient was measured: no optimizer returned by configure_optimizers has stepped. "
                "GradientNormMonitor cannot measure other optimizers."
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stops measuring."""
        self._stop(trainer)

    def table_entries(self) -> TableEntries:
        """Returns the first and last norm of each layer."""
        self._read_pending()
        return TableEntries(first_norms=self.first_norms, last_norms=self._latest_norms_by_layer)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {
            "history": [measurement.state_dict() for measurement in self.history],
            "first_norms": dict(self.first_norms),
            "step_counts": [self._step_counts.get(index, 0) for index in range(len(self._step_counts))],
            "has_unlogged": self._has_unlogged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        self._pending_measurements.clear()
        self._first_measurements.clear()
        self._measurements.clear()
        self._last_measurements, self._loggable_measurements, self._latest_norms_by_layer = {}, {}, {}
        for measurement_state in state_dict["history"]:
            self._add_measurement(GradientMeasurement.from_state(measurement_state))
        self.first_norms = dict(state_dict["first_norms"])
        self._step_counts = dict(enumerate(state_dict["step_counts"]))
        self._has_unlogged = state_dict.get("has_unlogged", False)  # absent in checkpoints of earlier versions

    def _inactive_state(self) -> dict[str, Any]:
        return {
            "_undo_functions": [],
            "_measured_parameters": {},
            "_open_measurements": {},
            "_noise_meter": None,
        }

    def _disable(self, error: Exception) -> None:
        """Ends measuring and warns. An error due to the kind of the gradients occurs on all ranks at once.

        Raises:
            OutOfMemoryError: If ``error`` is one, because the other ranks may have no error.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        self._has_failed, self._open_measurements = True, {}
        if self._noise_meter is not None:
            self._noise_meter.stop()
        self._first_measurements.clear()
        self._pending_measurements.clear()
        rank_zero_warn(f"GradientNormMonitor {describe_error(error)}. The run continues without its measurements.")

    @isolate_errors
    def _read_pending(self) -> None:
        """Reads pending measurements. Synchronizes with the device."""
        for measurement in self._first_measurements:
            for layer, norm in measurement.read().norms.items():
                self.first_norms.setdefault(layer, norm)
        for measurement in self._pending_measurements:
            self._add_measurement(measurement.read())
        self._first_measurements.clear()
        self._pending_measurements.clear()

    def _add_measurement(self, measurement: GradientMeasurement) -> None:
        self._measurements.append(measurement)
        self._latest_norms_by_layer |= measurement.norms
        if measurement.norms:
            self._last_measurements[measurement.optimizer] = measurement
        if measurement.norms and measurement.is_loggable:
            self._loggable_measurements[measurement.optimizer] = measurement

    @isolate_errors
    def _measure_before_clipping(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer, clip_val: float, by_value: bool
    ) -> None:
        """Records the clipping limit and, with manual optimization, measures the gradient."""
        index = find_optimizer_index(trainer, optimizer)
        if index is None:
            return
        if not module.automatic_optimization:  # clipping precedes the step, which unscales the gradient
            self._measure(trainer, module, optimizer, index, scaled=True)
        if index in self._open_measurements:
            self._open_measurements[index].record_clipping(clip_val, by_value)

    def _measure(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer, index: int, *, scaled: bool
    ) -> None:
        """Measures the gradient if the step of the optimizer is due and was not measured yet."""
        step = self._step_counts.get(index, 0) + 1
        if index in self._open_measurements and self._open_measurements[index].step == step:
            return
        self._open_measurements.pop(index, None)  # that step was skipped
        is_loggable = self._may_be_logged(trainer)
        if not self._is_due(trainer, index):
            return
        with self._cadence.timed():
            scaler = get_scaler(trainer)
            measured = self._parameters_with_gradient(module, optimizer, index)
            norms = Probe.of(trainer).gradient_norms(measured.gradients()) if measured.parameters else None
            measurement = PendingMeasurement(
                step,
                index,
                measured,
                norms,
                scaler,
                scaled=scaled,
                is_loggable=is_loggable,
                part=self._noise_meter.take(scaler) if self._noise_meter is not None else None,
            )
        self._has_unlogged |= is_loggable
        self._open_measurements[index] = measurement
        self._pending_measurements.append(measurement)
        if not self.first_norms.keys() >= set(measurement.layers):
            self._first_measurements.append(measurement)

    def _parameters_with_gradient(
        self, module: pl.LightningModule, optimizer: Optimizer, index: int
    ) -> MeasuredParameters:
        """Returns the parameters of an optimizer that have a gradient, the same object for the same parameters."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        key = (index, tuple(parameter.grad is not None for parameter in parameters))
        if key not in self._measured_parameters:
            self._measured_parameters[key] = MeasuredParameters(
                module, [parameter for parameter in parameters if parameter.grad is not None]
            )
        return self._measured_parameters[key]

    def _register_step_hook(self, optimizer: Optimizer, index: int) -> Callable[[], None]:
        """Registers a hook that records the update after each step. Returns a function that removes it."""

        def finish(*_: Any) -> None:
            if index in self._open_measurements:
                with self._cadence.timed():
                    self._open_measurements.pop(index).record_step()

        return optimizer.register_step_post_hook(isolated(finish, self._disable)).remove

    def _log(self, trainer: pl.Trainer) -> None:
        """Logs the last measured step and the fractions over the history."""
        self._read_pending()
        self._has_unlogged = False
        measurements = self._loggable_measurements.values()
        norms = _norms_by_layer(measurements)
        values = {_metric_name("gradients/norm", layer): norm for layer, norm in norms.items()}
        updates = {layer: ratio for measurement in measurements for layer, ratio in measurement.updates.items()}
        if len(measurements) > 1:
            updates.pop("total", None)  # a total exists for each optimizer only
        values |= {
            _metric_name("updates/ratio", layer): ratio.value for layer, ratio in updates.items() if ratio is not None
        }
        fractions: dict[str, float] = {}
        clipped = [measurement.clipped for measurement in self._measurements if measurement.clipped is not None]
        if clipped:
            fractions["gradients/clipped_fraction"] = sum(clipped) / len(clipped)
        skipped = [measurement.skipped for measurement in self._measurements]
        if any(skipped) or get_scaler(trainer) is not None:
            fractions["gradients/skipped_fraction"] = sum(skipped) / len(skipped)
        # callback_metrics must be equal after a resume, but a budget selects other steps
        add_callback_metrics(trainer, {**values, **fractions} if self._cadence.is_fixed else values)
        # callback_metrics must also be equal on all ranks, but the noise scale is estimated on each rank
        noise = self.noise_scale
        log_to_loggers(trainer, {**values, **fractions, **({} if noise is None else {"gradients/noise_scale": noise})})

    def _is_due(self, trainer: pl.Trainer, index: int) -> bool:
        """Returns whether to measure the next step of an optimizer."""
        if self._has_failed:
            return False
        steps = self._step_counts.get(index, 0)
        return self._cadence.is_due(steps, steps - 1, index) or (
            not self._cadence.is_fixed and self._may_be_logged(trainer)
        )

    def _may_be_logged(self, trainer: pl.Trainer) -> bool:
        """Returns whether a measurement of the current step may be logged.

        With a budget, only measurements of logging steps are logged, so that the values do not depend on time.
        """
        step = trainer.global_step
        return self._cadence.is_fixed or has_passed_logging_step(trainer, step, step + max(len(trainer.optimizers), 1))

    def _stop(self, trainer: pl.Trainer) -> None:
        close_probe(trainer)
        for restore in self._undo_functions:
            restore()
        self._undo_functions = []
        self._measured_parameters, self._open_measurements = {}, {}
        if self._noise_meter is not None:
            self._noise_meter.stop()
            self._noise_meter = None


def _norms_by_layer(measurements: Iterable[GradientMeasurement]) -> dict[str, float]:
    """Returns the norms by layer, and ``total``. Empty without a gradient."""
    norms = {layer: norm for measurement in measurements for layer, norm in measurement.norms.items()}
    return {"total": math.hypot(*norms.values()), **norms} if norms else {}


@cache
def _metric_name(group: str, layer: str) -> str:
    return group if layer == "total" else f"{group}/{layer}"

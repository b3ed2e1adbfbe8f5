"""How large the gradients are, layer by layer, and what the optimizer makes of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.gradients.measurement import GradientMeasurement, MeasuredParameters, PendingMeasurement
from stormproof.lightning import internals
from stormproof.lightning.logging_steps import has_passed_logging_step, log_values
from stormproof.lightning.optimizer_step import find_optimizer_index, get_scaler, unscales_gradients
from stormproof.monitoring.monitor import Monitor, TableEntries


class GradientNormMonitor(Monitor):
    r"""Measures the norm of the gradient, layer by layer, every so many optimizer steps.

    .. math:: \|g_l\| = \Big(\sum_{\theta \in l} \sum_j g_{\theta,j}^2\Big)^{1/2}, \qquad
        \|g\| = \Big(\sum_l \|g_l\|^2\Big)^{1/2}

    where g is the gradient that the optimizer gets, of the whole job: reduced over the ranks, accumulated, unscaled,
    and before clipping. A layer is the module that owns the parameters. With several optimizers each is measured at
    every n-th of its own steps. Between logging steps nothing waits for the device.

    Logged at Lightning's logging steps, of the last measured one: ``gradients/norm``, ``gradients/norm/<layer>``;
    ``updates/ratio`` and ``updates/ratio/<layer>``, the size of the update relative to the weights, estimated from some
    256 entries a tensor (:class:`stormproof.gradients.update_ratio.WeightSampler`); ``gradients/clipped_fraction``
    where something clips and ``gradients/skipped_fraction`` where something skips: shares of the measured steps in
    :attr:`history`.

    In manual optimization, what ``self.clip_gradients`` clips is measured before it; what a function of torch's clips,
    after it.

    Args:
        every_n_steps: measure the first step and each multiple of it, at least 1.
        history: measurements to remember, at least 1.
        table: whether to print a table when the training ends.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> monitor = GradientNormMonitor()
        >>> trainer = pl.Trainer(callbacks=[norms])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> norms.last_norms  # doctest: +SKIP
        {'total': 0.83, 'net.0': 0.41, 'net.2': 0.72}

    References:
        On the difficulty of training recurrent neural networks, Pascanu et al. 2013 (norms and clipping).
    """

    def __init__(self, every_n_steps: int = 10, *, history: int = 100, table: bool = True) -> None:
        for name, number in (("every_n_steps", every_n_steps), ("history", history)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} is {number}; it must be a whole number, at least 1")
        super().__init__(table)
        self.every_n_steps = every_n_steps
        self.first_norms: dict[str, float] = {}
        self._measurements: deque[GradientMeasurement] = deque(maxlen=history)
        self._pending_measurements: deque[PendingMeasurement] = deque(maxlen=history)  # their numbers are on the device
        self._last_measurements: dict[int, GradientMeasurement] = {}  # with a gradient, by optimizer
        self._latest_norms_by_layer: dict[str, float] = {}  # by layer, whenever that was
        self._first_measurements: list[PendingMeasurement] = []  # those of them with which layers came up
        self._open_measurements: dict[int, PendingMeasurement] = {}  # by optimizer: measured, and its step not done yet
        self._step_counts: dict[int, int] = {}  # steps that each optimizer has begun
        self._last_global_steps: dict[
            int, int
        ] = {}  # the global step of the last of them: one step may ask for several gradients
        self._measured_parameters: dict[tuple[int, tuple[bool, ...]], MeasuredParameters] = {}
        self._previous_step = 0
        self._has_trained = False
        self._undo_functions: list[Callable[[], None]] = []

    @property
    def history(self) -> list[GradientMeasurement]:
        """The last measurements, oldest first. Reading it waits for the device."""
        self._read_pending()
        return list(self._measurements)

    @property
    def last_norms(self) -> dict[str, float]:
        """``total`` and the norm of each layer that had a gradient in the last measured step; empty before.

        Of several optimizers it is the last measured step of each, and the total is over all of them.
        """
        self._read_pending()
        norms = {
            layer: norm for measurement in self._last_measurements.values() for layer, norm in measurement.norms.items()
        }
        return {"total": math.hypot(*norms.values()), **norms} if norms else {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier training, unless this one goes on with it."""
        destroy_gloo_before_exit()
        if stage == "fit" and trainer.global_step == 0:
            self.load_state_dict({"history": [], "first": {}, "begun": []})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to look at what the optimizers do."""
        self._previous_step, self._has_trained = trainer.global_step, False
        self._measured_parameters, self._last_global_steps, self._open_measurements = {}, {}, {}
        if len(trainer.optimizers) == 1:
            self._step_counts = {0: trainer.global_step}
        self._undo_functions = [
            internals.call_before_clipping(trainer, partial(self._measure_before_clipping, trainer, pl_module)),
            *(self._register_step_hook(optimizer, index) for index, optimizer in enumerate(trainer.optimizers)),
        ]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures the gradient, where it is this step's turn."""
        index = find_optimizer_index(trainer, optimizer)
        if index is None or self._last_global_steps.get(index) == trainer.global_step:
            return
        self._measure(trainer, pl_module, optimizer, index, scaled=unscales_gradients(optimizer))
        self._step_counts[index] = self._step_counts.get(index, 0) + 1
        self._last_global_steps[index] = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the last measurement at a logging step."""
        self._has_trained = True
        logging_step = has_passed_logging_step(trainer, self._previous_step, trainer.global_step)
        self._previous_step = trainer.global_step
        if logging_step and self._pending_measurements:
            self._log(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads what is left, and looks no longer."""
        self._read_pending()
        self._stop()
        if self._has_trained and not self._measurements:
            rank_zero_warn(
                "no gradient was measured: no optimizer of configure_optimizers has stepped in this training"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Looks no longer."""
        self._stop()

    def table_entries(self) -> TableEntries:
        """Each layer's first and last norm, for the table."""
        self._read_pending()
        return TableEntries(first_norms=self.first_norms, last_norms=self._latest_norms_by_layer)

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain values."""
        return {
            "history": [measurement.state_dict() for measurement in self.history],
            "first": dict(self.first_norms),
            "begun": [self._step_counts.get(index, 0) for index in range(len(self._step_counts))],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._pending_measurements.clear()
        self._first_measurements.clear()
        self._measurements.clear()
        self._last_measurements, self._latest_norms_by_layer = {}, {}
        for measurement_state in state_dict["history"]:
            self._add_measurement(GradientMeasurement.from_state(measurement_state))
        self.first_norms = dict(state_dict["first"])
        self._step_counts = dict(enumerate(state_dict["begun"]))

    def _inactive_state(self) -> dict[str, Any]:
        return {"_undo_functions": [], "_measured_parameters": {}, "_open_measurements": {}}

    def _read_pending(self) -> None:
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

    def _measure_before_clipping(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer, clip_val: float, by_value: bool
    ) -> None:
        index = find_optimizer_index(trainer, optimizer)
        if index is None:
            return
        if not module.automatic_optimization:  # before the step, and so before the gradient is unscaled
            self._measure(trainer, module, optimizer, index, scaled=True)
        if index in self._open_measurements:
            self._open_measurements[index].record_clipping(clip_val, by_value)

    def _measure(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer, index: int, *, scaled: bool
    ) -> None:
        step = self._step_counts.get(index, 0) + 1
        if index in self._open_measurements and self._open_measurements[index].step == step:
            return
        self._open_measurements.pop(index, None)  # that step was skipped
        if step > 1 and step % self.every_n_steps:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        key = (index, tuple(parameter.grad is not None for parameter in parameters))
        if key not in self._measured_parameters:
            self._measured_parameters[key] = MeasuredParameters(
                module, [parameter for parameter in parameters if parameter.grad is not None]
            )
        measurement = PendingMeasurement(
            step, index, self._measured_parameters[key], get_scaler(trainer), scaled=scaled
        )
        self._open_measurements[index] = measurement
        self._pending_measurements.append(measurement)
        if not self.first_norms.keys() >= set(measurement.layers):
            self._first_measurements.append(measurement)

    def _register_step_hook(self, optimizer: Optimizer, index: int) -> Callable[[], None]:
        def finish(*_: Any) -> None:
            if index in self._open_measurements:
                self._open_measurements.pop(index).record_step()

        return optimizer.register_step_post_hook(finish).remove

    def _log(self, trainer: pl.Trainer) -> None:
        norms = self.last_norms
        values = {_metric_name("gradients/norm", layer): norm for layer, norm in norms.items()}
        updates = {
            layer: ratio
            for measurement in self._last_measurements.values()
            for layer, ratio in measurement.updates.items()
        }
        if len(self._last_measurements) > 1:
            updates.pop("total", None)  # each optimizer has its own
        values |= {
            _metric_name("updates/ratio", layer): ratio.value for layer, ratio in updates.items() if ratio is not None
        }
        clipped = [measurement.clipped for measurement in self._measurements if measurement.clipped is not None]
        if clipped:
            values["gradients/clipped_fraction"] = sum(clipped) / len(clipped)
        skipped = [measurement.skipped for measurement in self._measurements]
        if any(skipped) or get_scaler(trainer) is not None:
            values["gradients/skipped_fraction"] = sum(skipped) / len(skipped)
        log_values(trainer, values)

    def _stop(self) -> None:
        for restore in self._undo_functions:
            restore()
        self._undo_functions = []
        self._measured_parameters, self._open_measurements = {}, {}


@cache
def _metric_name(group: str, layer: str) -> str:
    return group if layer == "total" else f"{group}/{layer}"

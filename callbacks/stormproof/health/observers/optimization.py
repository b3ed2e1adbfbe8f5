"""Observes which layers receive gradients, which parameters are optimized, and whether gradients are cleared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.weak import WeakIdKeyDictionary

from stormproof.gradients.measurement import GradientMeasurement
from stormproof.health.observations.gradients import Gradients, OptimizerWithoutGradient
from stormproof.health.observations.optimizers import Optimizers
from stormproof.health.observers.learning_rates import LearningRates
from stormproof.health.observers.parameter_groups import (
    count_entries_outside_optimizers,
    count_unoptimized_entries,
    find_duplicated_layers,
    find_nonzero_gradients,
    find_optimized_layers,
    find_unreached_layers,
    frozen_layers,
    has_any_gradient,
)
from stormproof.health.observers.tracing.step_trace import StepTrace
from stormproof.internal_errors import isolated
from stormproof.lightning.optimizer_step import find_optimizer_index

STRUCTURE_STEPS = 3
"""Number of steps after which the set of parameters with a gradient is final."""
MAX_STEPS = 8
"""Number of steps to check of each optimizer."""


class OptimizationObserver:
    """Observes gradients and optimizers in traced steps.

    Args:
        trainer: Trainer at the start of training.
        module: Module that it trains.
        uses_grad_scaler: Whether a gradient scaler is used.

    Attributes:
        learning_rates: Learning rates at the last traced step.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, *, uses_grad_scaler: bool) -> None:
        self._trainer, self._module, self._uses_grad_scaler = trainer, module, uses_grad_scaler
        self.learning_rates = LearningRates(trainer.optimizers)
        self.learning_rates.update(trainer.global_step)
        self._zero_grad_checks = {index: ZeroGradCheck(optimizer) for index, optimizer in enumerate(trainer.optimizers)}
        self._stepped_optimizers: set[int] = set()
        self._layers: set[str] = set()  # with a nonzero gradient
        self._first_step = 0
        self._steps_with_zeros: dict[str, int] = {}  # by layer without a nonzero gradient
        self._steps_without_gradient: dict[int, int] = {}  # by optimizer that never had one
        self._optimizers_with_gradient: set[int] = set()
        self._detached_layers: dict[str, str] = {}
        self._unused_layers: list[str] = []
        self._frozen_layers: list[str] = []
        self._unoptimized_entries: dict[str, int] = {}
        self._foreign_parameters = self._unregistered_entries = 0
        self._unregistered_parameters: Any = WeakIdKeyDictionary()  # of earlier traced steps
        self._duplicated_layers = find_duplicated_layers(module, trainer.optimizers)

    def stop(self) -> None:
        """Removes all hooks."""
        for check in self._zero_grad_checks.values():
            check.stop()

    def on_before_optimizer_step(self, optimizer: Any, *, is_traced: bool) -> None:
        """Records which layers have gradients in a traced step. In other steps, only detects the first gradient."""
        if not is_traced and not self._steps_without_gradient:
            return
        index = find_optimizer_index(self._trainer, optimizer)
        if index is None:
            return
        if has_any_gradient(optimizer):
            self._optimizers_with_gradient.add(index)
            self._steps_without_gradient.pop(index, None)
        elif is_traced and index not in self._optimizers_with_gradient:
            self._steps_without_gradient[index] = self._steps_without_gradient.get(index, 0) + 1
        if is_traced:
            self._record_layers(optimizer, index)

    def _record_layers(self, optimizer: Any, index: int) -> None:
        """Records which layers have gradients and which parameters have no optimizer."""
        gradients = find_nonzero_gradients(self._module, self._layers)
        new_layers = {layer for layer, is_nonzero in gradients.items() if is_nonzero}
        if new_layers and not self._layers:
            self._first_step = self._trainer.global_step
        self._layers |= new_layers
        for layer in new_layers:
            self._steps_with_zeros.pop(layer, None)
        if len(new_layers) < len(gradients):
            for layer in find_optimized_layers(self._module, optimizer):
                if gradients.get(layer) is False:
                    self._steps_with_zeros[layer] = self._steps_with_zeros.get(layer, 0) + 1
        self._stepped_optimizers.add(index)
        optimizers = self._trainer.optimizers
        if self._trainer.global_step < STRUCTURE_STEPS and len(self._stepped_optimizers) == len(optimizers):
            self._unoptimized_entries, foreign_parameters = count_unoptimized_entries(self._module, optimizers)
            self._foreign_parameters = foreign_parameters if self._unoptimized_entries else 0

    def finish_trace(self, trace: StepTrace, loss: Any, step: int, *, is_traceable: bool) -> None:
        """Records the layers that the loss of a traced step does not reach."""
        lasting_parameters = [
            parameter for parameter in trace.unregistered_parameters if parameter in self._unregistered_parameters
        ]  # meta-learning makes new copies of a network in each step
        self._unregistered_parameters.update((parameter, None) for parameter in trace.unregistered_parameters)
        entries = count_entries_outside_optimizers(lasting_parameters, self._trainer.optimizers)
        self._unregistered_entries = max(self._unregistered_entries, entries)
        if not is_traceable or not self._module.automatic_optimization:
            return
        if isinstance(loss, torch.Tensor):
            loss_layers = trace.origins.origin_of(loss).layers
            self._steps_with_zeros = {
                layer: steps for layer, steps in self._steps_with_zeros.items() if layer in loss_layers
            }  # other layers are unused, such as those in a term that is multiplied by zero
        if step > STRUCTURE_STEPS:
            return
        self._frozen_layers = frozen_layers(self._module)
        if isinstance(loss, torch.Tensor):
            origin = trace.origins.origin_of(loss)
            self._detached_layers, self._unused_layers = find_unreached_layers(
                self._module, self._trainer.optimizers, origin, trace, self._layers
            )

    def observe_gradients(self, measurements: Sequence[GradientMeasurement]) -> Gradients:
        """Returns the gradients, with the measurements of a monitor."""
        for check in self._zero_grad_checks.values():
            if check.is_done:
                check.stop()
        return Gradients(
            measurements=measurements,
            uses_grad_scaler=self._uses_grad_scaler,
            reached_layers=frozenset(self._layers),
            first_gradient_step=self._first_step,
            optimizers_without_gradient=[
                OptimizerWithoutGradient(
                    tuple(find_optimized_layers(self._module, self._trainer.optimizers[index])), steps
                )
                for index, steps in self._steps_without_gradient.items()
            ],
            steps_with_zero_gradient=dict(self._steps_with_zeros),
            detached_layers=self._detached_layers,
            unused_layers=self._unused_layers,
            frozen_layers=self._frozen_layers,
            retained_steps={
                index: (check.stale_steps, check.checked_steps) for index, check in self._zero_grad_checks.items()
            },
        )

    def observe_optimizers(self, step: int) -> Optimizers:
        """Returns the learning rates and the parameters of the optimizers after ``step`` steps."""
        return Optimizers(
            groups=self.learning_rates.groups,
            unoptimized_entries=self._unoptimized_entries,
            foreign_parameters=self._foreign_parameters,
            unregistered_entries=self._unregistered_entries,
            duplicated_layers=self._duplicated_layers,
            have_stepped=step > 0 or any(check.has_stepped for check in self._zero_grad_checks.values()),
        )


class ZeroGradCheck:
    """Checks whether a parameter of an optimizer still has its last gradient when a new one is added.

    Args:
        optimizer: Optimizer before its first step.

    Attributes:
        stale_steps: Number of steps whose gradient contains the gradient of the previous step.
        checked_steps: Number of checked steps.
        has_stepped: Whether the optimizer has stepped, in automatic or manual optimization.
    """

    def __init__(self, optimizer: Any) -> None:
        parameters = (
            parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad
        )
        self._parameter: torch.Tensor | None = min(parameters, key=torch.Tensor.numel, default=None)
        self._previous_gradient: torch.Tensor | None = None  # its gradient at the last step
        self._may_be_stale = self._is_stale = self._has_begun = self.has_stepped = False
        self.stale_steps = self.checked_steps = 0
        self._undo_functions: list[Callable[[], None]] = []
        if self._parameter is not None:
            self._undo_functions.append(
                self._parameter.register_hook(isolated(self._on_gradient, self._drop_parameter)).remove
            )
            self._undo_functions.append(
                self._parameter.register_post_accumulate_grad_hook(self._on_accumulated_gradient).remove
            )
            on_step = isolated(self._on_step, self._drop_parameter)
            self._undo_functions.append(optimizer.register_step_post_hook(on_step).remove)

    def _drop_parameter(self, _: Exception) -> None:
        """Ends the checks after an error, such as a missing function of sparse gradients."""
        self._parameter = None

    def _on_gradient(self, gradient: torch.Tensor) -> None:
        """Compares the accumulated gradient with the one at the last step."""
        accumulated = None if self._parameter is None else self._parameter.grad
        if accumulated is None or not bool(accumulated.any()):
            self._may_be_stale, self._previous_gradient = False, None
        elif self._previous_gradient is not None and torch.equal(accumulated, self._previous_gradient):
            self._may_be_stale = True

    def _on_accumulated_gradient(self, _: torch.Tensor) -> None:
        """Confirms that the gradient was added to ``.grad``. ``torch.autograd.grad`` does not call this hook."""
        self._is_stale = self._may_be_stale

    def _on_step(self, *_: Any) -> None:
        """Counts a step and keeps its gradient."""
        self.has_stepped = True
        if self._parameter is None or self._parameter.grad is None or self.checked_steps >= MAX_STEPS:
            return
        if self._has_begun:
            self.checked_steps += 1
            self.stale_steps += self._is_stale
        self._has_begun = True
        self._previous_gradient = self._parameter.grad.detach().clone()
        self._may_be_stale = self._is_stale = False

    @property
    def is_done(self) -> bool:
        """Returns whether enough steps were checked. Call :meth:`stop` then, but not within an optimizer step."""
        return self.checked_steps >= MAX_STEPS or self._parameter is None

    def stop(self) -> None:
        """Removes the hooks."""
        for restore in self._undo_functions:
            restore()
        self._undo_functions = []

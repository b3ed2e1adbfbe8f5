"""Checks that the gradients of an optimizer are cleared between its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stormproof.internal_errors import isolated

MAX_STEPS = 8
"""Number of steps to check of each optimizer."""


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

"""Whether an optimizer's gradients are cleared between its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LOOKS = 8
"""Steps of each optimizer that are looked at."""


class KeptGradients:
    """Watches one parameter of an optimizer: what its gradient was when another one came in.

    Args:
        optimizer: before its first step.

    Attributes:
        times: steps whose gradient held that of the step before.
        looked: steps that were looked at.
        has_stepped: whether the optimizer has, by whoever's call.
    """

    def __init__(self, optimizer: Any) -> None:
        held = (each for group in optimizer.param_groups for each in group["params"] if each.requires_grad)
        self._parameter: torch.Tensor | None = min(held, key=torch.Tensor.numel, default=None)
        self._before: torch.Tensor | None = None  # its gradient at the last step
        self._still_there = self._begun = self.has_stepped = False
        self.times = self.looked = 0
        self._undo: list[Callable[[], None]] = []
        if self._parameter is not None:
            self._undo.append(self._parameter.register_hook(self._comes_in).remove)
            self._undo.append(optimizer.register_step_post_hook(self._stepped).remove)

    def _comes_in(self, gradient: torch.Tensor) -> None:
        assert self._parameter is not None
        present = self._parameter.grad
        if present is None or not bool(present.any()):
            self._still_there, self._before = False, None
        elif self._before is not None and torch.equal(present, self._before):
            self._still_there = True

    def _stepped(self, *_: Any) -> None:
        assert self._parameter is not None
        self.has_stepped = True
        if self._parameter.grad is None or self.looked >= LOOKS:
            return
        if self._begun:
            self.looked += 1
            self.times += self._still_there
        self._begun = True
        self._before = self._parameter.grad.detach().clone()
        self._still_there = False

    @property
    def is_done(self) -> bool:
        """Whether it has seen enough, and can be stopped: not within a step of the optimizer."""
        return self.looked >= LOOKS

    def stop(self) -> None:
        """Watches no longer."""
        for undo in self._undo:
            undo()
        self._undo = []

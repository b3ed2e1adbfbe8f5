"""Collects the losses of training batches and of validation passes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import torch

from stormproof.divergence.spike_detector import SpikeDetector
from stormproof.health.observations.losses import Losses, ValidationPass

MAX_FIRST_LOSSES, MAX_RECENT_LOSSES = 20, 512
"""Maximum numbers of first losses and of recent losses."""
MAX_VALIDATIONS = 8
"""Maximum number of validation passes, in addition to the best one."""


class LossHistory:
    """Keeps the first and the last losses, and the best and the last validation passes.

    Args:
        report_spike: Function to call if a loss is not finite or far above the previous ones, once per spike.

    Attributes:
        have_one_backward: Whether each batch has at most one backward pass.
    """

    def __init__(self, report_spike: Callable[[], None]) -> None:
        self._report_spike = report_spike
        self.have_one_backward = True
        self._first: list[float] = []
        self._recent: deque[tuple[int, float]] = deque(maxlen=MAX_RECENT_LOSSES)
        self._validations: list[ValidationPass] = []
        self._has_unknown_validation = False
        self._device_losses: list[tuple[int, torch.Tensor]] = []
        self._sum_since_validation, self._count_since_validation = 0.0, 0
        self._spike_detector, self._is_spike = SpikeDetector(), False

    def add(self, step: int, loss: float) -> None:
        """Adds the loss of a batch after ``step`` optimizer steps."""
        if len(self._first) < MAX_FIRST_LOSSES:
            self._first.append(loss)
        self._recent.append((step, loss))
        if self._is_start_of_spike(loss):
            self._report_spike()
        self._sum_since_validation += loss
        self._count_since_validation += 1

    def add_on_device(self, step: int, loss: torch.Tensor) -> None:
        """Adds a loss that :meth:`read_device` reads from its device."""
        self._device_losses.append((step, loss))

    def read_device(self, factor: float) -> int | None:
        """Reads losses from the device, multiplied by ``factor``. Returns the step of the first non-finite one."""
        if not self._device_losses:
            return None
        steps, losses = zip(*self._device_losses, strict=True)
        self._device_losses = []
        values = torch.stack(losses).tolist()
        for step, loss in zip(steps, values, strict=True):
            self.add(step, loss * factor)
        return next((step for step, loss in zip(steps, values, strict=True) if not math.isfinite(loss)), None)

    def add_validation(self, step: int, losses: list[float], metric: float | None, samples: int | None) -> None:
        """Adds a validation pass.

        Args:
            step: Number of optimizer steps before it.
            losses: Losses of its batches.
            metric: Value to use without losses. The pass is left out if there are no losses and `metric` is None.
            samples: Number of samples. None if unknown.
        """
        count = self._count_since_validation
        training_loss = self._sum_since_validation / count if count else None
        self._sum_since_validation, self._count_since_validation = 0.0, 0
        value = fmean(losses) if losses else metric
        self._has_unknown_validation |= value is None
        if value is None:
            return
        passes = [*self._validations, ValidationPass(step, tuple(losses), value, training_loss, samples)]
        best = min(passes, key=lambda candidate: candidate.loss)
        self._validations = [candidate for candidate in passes[:-MAX_VALIDATIONS] if candidate is best]
        self._validations += passes[-MAX_VALIDATIONS:]

    def observe(self) -> Losses:
        """Returns the losses that were read so far."""
        return Losses(
            tuple(self._first),
            tuple(self._recent),
            self.have_one_backward,
            tuple(self._validations),
            self._has_unknown_validation,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses as plain values."""
        return {
            "first": list(self._first),
            "recent": [list(entry) for entry in self._recent],
            "validations": [
                [entry.step, list(entry.losses), entry.loss, entry.training_loss, entry.samples]
                for entry in self._validations
            ],
            "since_validated": [self._sum_since_validation, self._count_since_validation],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the losses."""
        self._first = list(state["first"])
        for step, loss in state["recent"]:
            self._recent.append((step, loss))
            self._is_start_of_spike(loss)
        self._validations = [
            # samples are absent in checkpoints of earlier versions
            ValidationPass(step, tuple(losses), loss, training_loss, *samples)
            for step, losses, loss, training_loss, *samples in state["validations"]
        ]
        self._sum_since_validation, self._count_since_validation = state["since_validated"]

    def _is_start_of_spike(self, loss: float) -> bool:
        """Adds a loss to the detector. Returns whether it is not finite or far above the losses before it."""
        previous_is_spike = self._is_spike
        self._is_spike = not math.isfinite(loss) or self._spike_detector.detect(loss) is not None
        if not self._is_spike:
            self._spike_detector.add(loss)
        return self.have_one_backward and self._is_spike and not previous_is_spike

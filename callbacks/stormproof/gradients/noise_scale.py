r"""The gradient noise scale, from gradients of a part of the batch and of the whole batch.

Let :math:`G` be the mean of the gradients of all samples and :math:`\Sigma` their covariance. The mean over :math:`B`
samples has the expected squared norm :math:`|G|^2 + \operatorname{tr}(\Sigma) / B`. Two batch sizes determine both
terms. The part of a batch is the first accumulated batch or, without accumulation, the batch of this rank. So no
further backward pass is necessary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection

from stormproof.gradients.norms import local_norms

MIN_SAMPLES = 10
"""Minimum number of steps for an estimate. The estimate of a single step is mostly noise."""


@dataclass(frozen=True)
class NoiseSample:
    """Unbiased estimates of one step.

    Attributes:
        variance: Trace of the covariance of the gradients of single samples. Negative by chance.
        signal: Squared norm of the mean gradient. Negative by chance.
    """

    variance: float
    signal: float


def estimate_noise(part_square: float, whole_square: float, part_size: int, whole_size: int) -> NoiseSample:
    """Returns the estimates from the squared norms of the gradient over a part of a batch and over the whole.

    Args:
        part_square: Squared norm of the mean gradient over the part.
        whole_square: Squared norm of the mean gradient over the whole batch.
        part_size: Samples in the part. Must be at least 1.
        whole_size: Samples in the whole batch. Must be above ``part_size``.

    Example:
        >>> estimate_noise(part_square=5.0, whole_square=2.0, part_size=1, whole_size=4)
        NoiseSample(variance=4.0, signal=1.0)

    References:
        McCandlish et al., An empirical model of large-batch training, 2018, appendix A.1.
    """
    variance = (part_square - whole_square) / (1 / part_size - 1 / whole_size)
    signal = (whole_size * whole_square - part_size * part_square) / (whole_size - part_size)
    return NoiseSample(variance, signal)


def noise_scale(samples: Iterable[NoiseSample]) -> float | None:
    r"""Returns :math:`\operatorname{tr}(\Sigma) / |G|^2`, in samples, from the means over several steps.

    None with fewer than ten steps, or if the steps do not show that a mean is above zero.

    Example:
        >>> noise_scale([NoiseSample(4.0, 1.0)] * 10)
        4.0
    """
    collected = list(samples)
    if len(collected) < MIN_SAMPLES:
        return None
    variance, signal = (fmean(getattr(sample, name) for sample in collected) for name in ("variance", "signal"))
    return variance / signal if variance > 0 and signal > 0 else None


@dataclass(frozen=True)
class PartNorm:
    """Norm of the gradient over a part of a batch.

    Attributes:
        square: Squared norm on the device, without the scale of a gradient scaler.
        size: Samples in the part.
        whole_size: Samples in the whole batch.
    """

    square: torch.Tensor
    size: int
    whole_size: int


class PartialGradient:
    """Measures the gradient of this rank's first accumulated batch of a step.

    Args:
        parameters: Parameters of the optimizer.
        accumulated_batches: Accumulated batches per step. Their losses are divided by this number.
        ranks: Number of ranks. Must be above 1 if ``accumulated_batches`` is 1.
        timed: Returns a context that measures the time of each measurement.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        accumulated_batches: int,
        ranks: int,
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._parameters, self._accumulated_batches, self._ranks = parameters, accumulated_batches, ranks
        self._timed = timed
        self._sizes: list[int | None] = []
        self._squares: list[torch.Tensor] = []
        self._num_backward = 0
        self._hooks: list[Any] = []
        if accumulated_batches == 1:  # the ranks' gradients are averaged before the backward pass ends
            self._hooks = [
                parameter.register_post_accumulate_grad_hook(self._add_gradient)
                for parameter in parameters
                if parameter.requires_grad
            ]

    def add_batch(self, batch: Any) -> None:
        """Counts the samples of a batch, before its forward pass."""
        self._sizes.append(count_samples(batch))

    def after_backward(self) -> None:
        """Measures the gradient after the first backward pass."""
        self._num_backward += 1
        if self._num_backward == 1 and self._accumulated_batches > 1:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            if gradients:
                with self._timed():
                    self._squares = [local_norms(gradients).square().sum() * self._accumulated_batches**2]

    def finish(self, scaler: Any) -> PartNorm | None:
        """Returns the norm. None if the batches differ in size, or not all of them had a backward pass.

        Args:
            scaler: Gradient scaler, or None.
        """
        self.stop()
        size = self._sizes[0] if self._sizes else None
        if (
            size is None
            or not self._squares
            or self._sizes != [size] * self._accumulated_batches
            or self._num_backward != self._accumulated_batches
        ):
            return None
        square = torch.stack([square.to(self._squares[0].device) for square in self._squares]).sum()
        if scaler is not None:
            square = square / scaler.scale(torch.ones_like(square)).square()  # get_scale() would synchronize
        return PartNorm(square, size, size * self._accumulated_batches * self._ranks)

    def stop(self) -> None:
        """Removes the hooks."""
        while self._hooks:
            self._hooks.pop().remove()

    def _add_gradient(self, parameter: torch.Tensor) -> None:
        with self._timed():
            if parameter.grad is not None:
                self._squares.append(local_norms([parameter.grad])[0].square())


def count_samples(batch: Any) -> int | None:
    """Returns the first dimension of all tensors of a batch. None if they have none, or different ones.

    Example:
        >>> count_samples((torch.zeros(8, 3), torch.zeros(8)))
        8
    """
    sizes: set[int] = set()
    apply_to_collection(batch, torch.Tensor, lambda tensor: sizes.update(tensor.shape[:1]))
    return sizes.pop() if len(sizes) == 1 else None

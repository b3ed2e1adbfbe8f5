r"""The gradient noise scale, from gradients of a part of the batch and of the whole batch.

Let :math:`G` be the mean of the gradients of all samples and :math:`\Sigma` their covariance. The mean over :math:`B`
samples has the expected squared norm :math:`|G|^2 + \operatorname{tr}(\Sigma) / B`. Two batch sizes determine both
terms. The part of a batch is the first accumulated batch or, without accumulation, the batch of this rank. So no
additional backward pass is necessary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.gradients.norms import local_norms
from stormproof.internal_errors import isolated

MIN_ESTIMATES = 10
"""Minimum number of steps with an estimate. The estimate of a single step is mostly noise."""
FAR_RATIO = 10.0
"""Factor by which the noise scale and the batch size must differ to be far apart."""


@dataclass(frozen=True)
class NoiseEstimate:
    """Unbiased estimates of one step.

    Attributes:
        variance: Trace of the covariance of the gradients of single samples. Can be negative by chance.
        signal: Squared norm of the mean gradient. Can be negative by chance.
    """

    variance: float
    signal: float


def estimate_noise(part_square: float, whole_square: float, part_size: int, whole_size: int) -> NoiseEstimate:
    """Returns the estimates from the squared norms of the gradient over a part of a batch and over the whole.

    Args:
        part_square: Squared norm of the mean gradient over the part.
        whole_square: Squared norm of the mean gradient over the whole batch.
        part_size: Samples in the part. Must be at least 1.
        whole_size: Samples in the whole batch. Must be above ``part_size``.

    Example:
        >>> estimate_noise(part_square=5.0, whole_square=2.0, part_size=1, whole_size=4)
        NoiseEstimate(variance=4.0, signal=1.0)

    References:
        McCandlish et al., An empirical model of large-batch training, 2018, appendix A.1.
    """
    variance = (part_square - whole_square) / (1 / part_size - 1 / whole_size)
    signal = (whole_size * whole_square - part_size * part_square) / (whole_size - part_size)
    return NoiseEstimate(variance, signal)


def noise_scale(estimates: Iterable[NoiseEstimate]) -> float | None:
    r"""Returns the simple noise scale :math:`\operatorname{tr}(\Sigma) / |G|^2`, in samples, from means over steps.

    None with fewer than ten estimates, or if a mean is not positive.

    Example:
        >>> noise_scale([NoiseEstimate(4.0, 1.0)] * 10)
        4.0
    """
    collected = list(estimates)
    if len(collected) < MIN_ESTIMATES:
        return None
    variance = fmean(estimate.variance for estimate in collected)
    signal = fmean(estimate.signal for estimate in collected)
    return variance / signal if variance > 0 and signal > 0 else None


def batch_size_advice(scale: float, batch_size: int) -> str | None:
    """Returns advice if the batch size is far from the noise scale, otherwise None.

    Args:
        scale: Noise scale in samples. Must be positive.
        batch_size: Samples per optimizer step.

    Example:
        >>> batch_size_advice(scale=20.0, batch_size=1024)
        'Batches of about 20 samples need almost as few steps, and fewer samples in total.'
    """
    if scale >= FAR_RATIO * batch_size:
        return "Larger batches reduce the number of steps almost in proportion if the learning rate is scaled, too."
    if scale <= batch_size / FAR_RATIO:
        return f"Batches of about {max(scale, 1):,.0f} samples need almost as few steps, and fewer samples in total."
    return None


@dataclass(frozen=True)
class PartialSquare:
    """Squared norm of the gradient over a part of a batch.

    Attributes:
        square: Squared norm on the device, without the scale of a gradient scaler.
        size: Samples in the part.
        whole_size: Samples in the whole batch.
    """

    square: torch.Tensor
    size: int
    whole_size: int


class PartialGradient:
    """Measures the squared norm of the gradient of this rank's first batch in a step.

    Args:
        parameters: Parameters of the optimizer.
        accumulated_batches: Accumulated batches per step. Their losses are divided by this number.
        ranks: Number of ranks. Must be above 1 if ``accumulated_batches`` is 1.
        timed: Returns a context manager that adds its time to the cost of measuring.
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
        self._norms: list[torch.Tensor] = []
        self._num_backward = 0
        self._hooks: list[Any] = []
        if accumulated_batches == 1:  # the ranks' gradients are averaged before the backward pass ends
            self._hooks = [
                parameter.register_post_accumulate_grad_hook(isolated(self._add_gradient, self._discard))
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
                    self._norms = [local_norms(gradients)]

    def finish(self, scaler: Any) -> PartialSquare | None:
        """Returns the squared norm. None if the batches differ in size, or not all of them had a backward pass."""
        self.stop()
        size = self._sizes[0] if self._sizes else None
        if (
            size is None
            or not self._norms
            or self._sizes != [size] * self._accumulated_batches
            or self._num_backward != self._accumulated_batches
        ):
            return None
        norms = torch.cat([norms.to(self._norms[0].device) for norms in self._norms])
        square = norms.square().sum() * self._accumulated_batches**2
        if scaler is not None:
            square = square / scaler.scale(torch.ones_like(square)).square()  # get_scale() would synchronize
        return PartialSquare(square, size, size * self._accumulated_batches * self._ranks)

    def stop(self) -> None:
        """Removes the hooks. They must not exist between batches, where the state of DDP is saved."""
        while self._hooks:
            self._hooks.pop().remove()

    def _discard(self, _: Exception) -> None:
        """Discards the measurement after an error."""
        self._sizes = []

    def _add_gradient(self, parameter: torch.Tensor) -> None:
        with self._timed():
            if parameter.grad is not None:
                self._norms.append(local_norms([parameter.grad]))


class NoiseMeter:
    """Measures, in steps that are due, the gradient of a part of the batch.

    Args:
        trainer: Trainer with automatic optimization and unsharded gradients, at the start of training.
        timed: Returns a context manager that adds its time to the cost of measuring.
    """

    def __init__(self, trainer: pl.Trainer, timed: Callable[[], AbstractContextManager[None]]) -> None:
        self._trainer, self._timed = trainer, timed
        self._step = -1  # last step whose first batch has begun
        self._gradient: PartialGradient | None = None  # of a step that is due

    def start_batch(self, batch: Any, is_due: Callable[[], bool]) -> None:
        """Starts a batch. ``is_due`` returns whether to measure the step, and is called for its first batch."""
        accumulated_batches, ranks = self._trainer.accumulate_grad_batches, self._trainer.world_size
        if accumulated_batches * ranks == 1:
            return  # the batch has no parts
        if self._step != self._trainer.global_step:
            self._step = self._trainer.global_step
            self.stop()
            if is_due():
                groups = [group for optimizer in self._trainer.optimizers for group in optimizer.param_groups]
                parameters = [parameter for group in groups for parameter in group["params"]]
                self._gradient = PartialGradient(parameters, accumulated_batches, ranks, self._timed)
        if self._gradient is not None:
            self._gradient.add_batch(batch)

    def after_backward(self) -> None:
        """Measures the gradient after the first backward pass of a step."""
        if self._gradient is not None:
            self._gradient.after_backward()

    def end_batch(self) -> None:
        """Removes the hooks, which would remain after a batch without a step."""
        if self._gradient is not None:
            self._gradient.stop()

    def take(self, scaler: Any) -> PartialSquare | None:
        """Returns the result of the current step, before its update. None if it was not measured."""
        gradient, self._gradient = self._gradient, None
        return None if gradient is None else gradient.finish(scaler)

    def stop(self) -> None:
        """Discards the current measurement."""
        self.end_batch()
        self._gradient = None


def count_samples(batch: Any) -> int | None:
    """Returns the common first dimension of all tensors in a batch, or None if it has no tensors or the sizes differ.

    Example:
        >>> count_samples((torch.zeros(8, 3), torch.zeros(8)))
        8
    """
    sizes = set(_first_dimensions(batch))
    return sizes.pop() if len(sizes) == 1 else None


def _first_dimensions(value: Any) -> Iterator[int]:
    """Yields the first dimension of each tensor in nested containers and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield from () if value.is_nested else value.shape[:1]
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _first_dimensions(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _first_dimensions(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _first_dimensions(getattr(value, field.name))

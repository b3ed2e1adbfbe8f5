"""Estimates the update-to-weight ratio from a sample of the entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stormproof.distributed.dtensor import to_local
from stormproof.units.running_min_max import accumulation_dtype

SAMPLED_ENTRIES = 256
"""Approximate number of sampled entries of each tensor. Smaller tensors are sampled completely."""


@dataclass(frozen=True, slots=True)
class UpdateRatio:
    """Norm of an update divided by the norm of the weights.

    Attributes:
        value: Estimated ratio.
        half_width: Half-width of its 95% confidence interval.
    """

    value: float
    half_width: float


class WeightSampler:
    r"""Estimates :math:`r = \|\theta' - \theta\| / \|\theta\|` from about 256 entries per tensor.

    The entries are equally spaced in memory. The spacing is coprime to all dimensions, so that rows and columns are
    sampled evenly. Let :math:`x = (\theta' - \theta)^2` and :math:`y = \theta^2`. From the :math:`N_t` entries of
    tensor :math:`t`, :math:`k_t` are sampled. The estimator of :math:`r^2` is the ratio estimator

    .. math:: R = \frac{\sum_t N_t \bar x_t}{\sum_t N_t \bar y_t}

    with variance

    .. math:: \operatorname{var} R \approx \Big(\sum_t N_t \bar y_t\Big)^{-2}
        \sum_t \Big(1 - \frac{k_t}{N_t}\Big) \frac{N_t^2}{k_t}\, s_t^2(x - R y).

    The standard error of :math:`r` is :math:`\sqrt{\operatorname{var} R} / 2r`. A completely sampled tensor contributes
    no error.

    Args:
        weights: n tensors. Each rank samples its shard of a ``DTensor``.

    References:
        Cochran, Sampling techniques, 3rd edition, 1977, sections 6.4 and 6.11.

    Example:
        >>> weight = torch.ones(3, 3)
        >>> sampler = WeightSampler([weight])
        >>> before = sampler.sample()
        >>> _ = weight.mul_(1.01)
        >>> (row,) = sampler.gram_rows(before, sampler.sample()).tolist()
        >>> round(ratio_from_moments(moments_from_row(row)).value, 4)
        0.01
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weights = weights
        self._data_pointers: list[int] = []
        self._sampled_views: list[torch.Tensor] = []
        parts = [_flatten_in_memory_order(weight) for weight in weights]
        self._device = device = parts[0].device
        self._slices = [_lattice_slice(part.numel(), weight.shape) for part, weight in zip(parts, weights, strict=True)]
        sample_sizes = [part[sample_slice].numel() for part, sample_slice in zip(parts, self._slices, strict=True)]
        self._positions = _gather_positions(sample_sizes).to(device)
        self._constants = torch.tensor([0.0, 1.0], device=device)
        self._entry_counts = torch.tensor(
            [[part.numel()] for part in parts], device=device, dtype=accumulation_dtype(device)
        )

    def sample(self) -> torch.Tensor:
        """Returns the current values of the sampled entries, about 256 per tensor."""
        data_pointers = [to_local(weight).data_ptr() for weight in self._weights]
        if data_pointers != self._data_pointers:  # the weights were moved to other memory
            parts = [_flatten_in_memory_order(weight) for weight in self._weights]
            self._sampled_views = [part[sample_slice] for part, sample_slice in zip(parts, self._slices, strict=True)]
            self._data_pointers = data_pointers
        is_single_device = all(view.device == self._device for view in self._sampled_views)
        entries = torch.cat(
            self._sampled_views if is_single_device else [view.to(self._device) for view in self._sampled_views]
        )
        return entries.float() if entries.dtype in {torch.float16, torch.bfloat16} else entries

    def gram_rows(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        r"""Returns the input of :func:`moments_from_row` for each tensor.

        Args:
            before: Result of :meth:`sample` before the update.
            after: Result of :meth:`sample` after the update.

        Returns:
            Rows, ``(n, 10)``: the Gram matrix of the sampled :math:`x`, :math:`y` and 1, and :math:`N_t`.
        """
        entries = torch.cat([after - before, before, self._constants])
        # (n, 3, max_size), padded with zeros
        x_y_1 = entries.take(self._positions).to(accumulation_dtype(self._device)).square_()
        return torch.cat([(x_y_1 @ x_y_1.mT).flatten(1), self._entry_counts], 1)


def moments_from_row(row: Sequence[float]) -> tuple[float, ...]:
    """Returns the estimated sums of x and y of a tensor, the variances of both estimates and their covariance.

    Moments are additive over the shards of a tensor, the tensors of a layer, and layers.

    Args:
        row: Row of :meth:`WeightSampler.gram_rows`.

    Example:
        >>> moments_from_row([5.0, 5.0, 3.0, 5.0, 10.0, 6.0, 3.0, 6.0, 4.0, 8.0])
        (6.0, 12.0, 7.333333333333333, 2.6666666666666665, 1.3333333333333333)
    """
    xx, xy, x, _, yy, y, _, _, sample_size, entry_count = row
    if sample_size == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    scale = (1 - sample_size / entry_count) * entry_count * entry_count / sample_size / max(sample_size - 1, 1)
    scatter = (xx - x * x / sample_size, yy - y * y / sample_size, xy - x * y / sample_size)
    return entry_count / sample_size * x, entry_count / sample_size * y, *(scale * term for term in scatter)


def ratio_from_moments(moments: Sequence[float]) -> UpdateRatio | None:
    """Returns the ratio from the five moments, or None if all weights are zero.

    Example:
        >>> ratio_from_moments([0.04, 4.0, 0.0, 0.0, 0.0])
        UpdateRatio(value=0.1, half_width=0.0)
    """
    sum_x, sum_y, var_x, var_y, covariance = moments
    if sum_y == 0:
        return None
    ratio = sum_x / sum_y
    value = math.sqrt(ratio)
    variance = max(var_x - 2 * ratio * covariance + ratio * ratio * var_y, 0.0) / sum_y**2
    return UpdateRatio(value, 1.96 * math.sqrt(variance) / (2 * value) if value else 0.0)


def _flatten_in_memory_order(weight: torch.Tensor) -> torch.Tensor:
    """Returns all entries in memory order. A view, unless the memory of the tensor overlaps or has gaps."""
    part = to_local(weight.detach())
    part = torch.view_as_real(part) if part.is_complex() else part
    return part.permute(sorted(range(part.ndim), key=lambda dimension: -part.stride(dimension))).reshape(-1)


def _lattice_slice(entries: int, shape: Sequence[int]) -> slice:
    """Returns a slice of about ``SAMPLED_ENTRIES`` entries, whose step is coprime to all dimensions."""
    step = max(entries // SAMPLED_ENTRIES, 1)
    while any(math.gcd(step, size) > 1 for size in shape):
        step -= 1
    return slice(step // 2, entries, step)


def _gather_positions(sample_sizes: Sequence[int]) -> torch.Tensor:
    """Returns the indices of x, y and 1 of each tensor in [all updates, all weights, 0, 1], ``(n, 3, max_size)``."""
    total, max_size = sum(sample_sizes), max(sample_sizes)
    positions = torch.full((len(sample_sizes), 3, max_size), 2 * total)
    start = 0
    for row, size in zip(positions, sample_sizes, strict=True):
        row[0, :size] = torch.arange(start, start + size)
        row[1, :size] = row[0, :size] + total
        row[2, :size] = 2 * total + 1
        start += size
    return positions

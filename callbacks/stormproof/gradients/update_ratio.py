"""How large a step an optimizer takes, relative to the weights, from a sample of their entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stormproof.distributed.dtensor import own_part
from stormproof.units.accumulation_dtype import exact_dtype

ENTRIES = 256
"""Entries sampled of each tensor, seldom a few more; a tensor of up to so many is taken whole."""


@dataclass(frozen=True, slots=True)
class UpdateRatio:
    """The size of an update relative to the weights, with the half-width of its 95% interval (no unit)."""

    value: float
    half_width: float


class WeightSampler:
    r"""Estimates :math:`r = \|\theta' - \theta\| / \|\theta\|` from some 256 entries a tensor.

    The entries lie on a lattice through the tensor whose step has no factor in common with any of its dimensions, so
    that they meet rows and columns alike. With :math:`x = (\theta' - \theta)^2` and :math:`y = \theta^2`, of tensor t
    with :math:`N_t` entries :math:`k_t` are sampled; :math:`r^2` is the ratio estimator

    .. math:: R = \frac{\sum_t N_t \bar x_t}{\sum_t N_t \bar y_t}, \qquad
        \operatorname{var} R \approx \Big(\sum_t N_t \bar y_t\Big)^{-2}
        \sum_t \Big(1 - \frac{k_t}{N_t}\Big) \frac{N_t^2}{k_t}\, s_t^2(x - R y)

    and the standard error of r is :math:`\sqrt{\operatorname{var} R} / 2r` (Cochran 1977, sections 6.4 and 6.11). A
    tensor taken whole has no error.

    Args:
        weights: n tensors; a rank samples its own part of a ``DTensor``.

    Example:
        >>> weight = torch.ones(3, 3)
        >>> sampler = WeightSampler([weight])
        >>> before = sampler.take()
        >>> _ = weight.mul_(1.01)
        >>> (row,) = sampler.rows(before, sampler.take()).tolist()
        >>> round(ratio_of(moments_of(row)).value, 4)
        0.01
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weights = weights
        self._addresses: list[int] = []
        self._views: list[torch.Tensor] = []
        parts = [_flat(weight) for weight in weights]
        self._device = device = parts[0].device
        self._places = [_lattice(part.numel(), weight.shape) for part, weight in zip(parts, weights, strict=True)]
        taken = [part[place].numel() for part, place in zip(parts, self._places, strict=True)]
        self._where = _where(taken).to(device)
        self._constants = torch.tensor([0.0, 1.0], device=device)
        self._of = torch.tensor([[part.numel()] for part in parts], device=device, dtype=exact_dtype(device))

    def take(self) -> torch.Tensor:
        """The sampled entries as they are now: one copy of some 256 numbers a tensor."""
        addresses = [own_part(weight).data_ptr() for weight in self._weights]
        if addresses != self._addresses:  # somebody has put others in their place
            parts = [_flat(weight) for weight in self._weights]
            self._views = [part[place] for part, place in zip(parts, self._places, strict=True)]
            self._addresses = addresses
        together = all(view.device == self._device for view in self._views)
        entries = torch.cat(self._views if together else [view.to(self._device) for view in self._views])
        return entries.float() if entries.dtype in {torch.float16, torch.bfloat16} else entries

    def rows(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        r"""What :func:`moments_of` needs of each tensor, from the entries before and after an update.

        Returns:
            (n, 10): the Gram matrix of the sampled :math:`x`, :math:`y` and 1, row by row, and :math:`N_t`.
        """
        entries = torch.cat([after - before, before, self._constants])
        x_y_1 = entries.take(self._where).to(exact_dtype(self._device)).square_()  # (n, 3, most), with zeros behind
        return torch.cat([(x_y_1 @ x_y_1.mT).flatten(1), self._of], 1)


def moments_of(row: Sequence[float]) -> tuple[float, ...]:
    """Of a tensor, the estimated sums of x and y, the variances of both estimates and their covariance.

    They add up: over the parts of a tensor, over the tensors of a layer, and over all layers.

    Args:
        row: one of :meth:`WeightSampler.rows`.

    Example:
        >>> moments_of([5.0, 5.0, 3.0, 5.0, 10.0, 6.0, 3.0, 6.0, 4.0, 8.0])
        (6.0, 12.0, 7.333333333333333, 2.6666666666666665, 1.3333333333333333)
    """
    xx, xy, x, _, yy, y, _, _, taken, of = row
    if taken == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    scale = (1 - taken / of) * of * of / taken / max(taken - 1, 1)
    spread = (xx - x * x / taken, yy - y * y / taken, xy - x * y / taken)
    return of / taken * x, of / taken * y, *(scale * each for each in spread)


def ratio_of(moments: Sequence[float]) -> UpdateRatio | None:
    """The ratio behind five moments, or None where all weights are zero.

    Example:
        >>> ratio_of([0.04, 4.0, 0.0, 0.0, 0.0])
        UpdateRatio(value=0.1, half_width=0.0)
    """
    sum_x, sum_y, var_x, var_y, covariance = moments
    if sum_y == 0:
        return None
    ratio = sum_x / sum_y
    value = math.sqrt(ratio)
    variance = max(var_x - 2 * ratio * covariance + ratio * ratio * var_y, 0.0) / sum_y**2
    return UpdateRatio(value, 1.96 * math.sqrt(variance) / (2 * value) if value else 0.0)


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """All entries in the order of the memory: a view, unless the tensor overlaps itself or has gaps."""
    part = own_part(weight.detach())
    part = torch.view_as_real(part) if part.is_complex() else part
    return part.permute(sorted(range(part.ndim), key=lambda dimension: -part.stride(dimension))).reshape(-1)


def _lattice(entries: int, shape: Sequence[int]) -> slice:
    step = max(entries // ENTRIES, 1)
    while any(math.gcd(step, size) > 1 for size in shape):
        step -= 1
    return slice(step // 2, entries, step)


def _where(taken: Sequence[int]) -> torch.Tensor:
    """(n, 3, most): where each tensor's updates, weights and ones lie in all updates, all weights, a zero and a one."""
    total, most = sum(taken), max(taken)
    where = torch.full((len(taken), 3, most), 2 * total)
    begin = 0
    for row, size in zip(where, taken, strict=True):
        row[0, :size] = torch.arange(begin, begin + size)
        row[1, :size] = row[0, :size] + total
        row[2, :size] = 2 * total + 1
        begin += size
    return where

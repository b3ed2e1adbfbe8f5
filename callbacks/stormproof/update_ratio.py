"""How large a step an optimizer takes, relative to the weights, from a sample of their entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stormproof.exact_dtype import exact_dtype
from stormproof.sharded import own_part, sum_over_parts

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
        >>> moments = sampler.moments(before, sampler.take())
        >>> round(ratio_of(moments[:, 0].tolist()).value, 4)
        0.01
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weights = weights
        self._addresses: list[int] = []
        self._views: list[torch.Tensor] = []
        parts = [_flat(weight) for weight in weights]
        device = parts[0].device
        self._places = [_lattice(part.numel(), weight.shape) for part, weight in zip(parts, weights, strict=True)]
        sizes = [part[place].numel() for part, place in zip(parts, self._places, strict=True)]
        self._taken = torch.tensor(sizes, device=device, dtype=exact_dtype(device))
        self._of = torch.tensor([part.numel() for part in parts], device=device, dtype=exact_dtype(device))
        self._rows = _rows(sizes).to(device)

    def take(self) -> torch.Tensor:
        """The sampled entries as they are now: one copy of some 256 numbers a tensor."""
        addresses = [own_part(weight).data_ptr() for weight in self._weights]
        if addresses != self._addresses:  # somebody has put others in their place
            parts = [_flat(weight) for weight in self._weights]
            self._views = [part[place].to(self._taken.device) for part, place in zip(parts, self._places, strict=True)]
            self._addresses = addresses
        entries = torch.cat(self._views)
        return entries.float() if entries.dtype in {torch.float16, torch.bfloat16} else entries

    def moments(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """What :func:`ratio_of` needs, from the entries before and after an update.

        Returns:
            (5, n): of each tensor the estimated sums of x and y, the variances of both estimates and their covariance.
            They add up: over the tensors of a layer, and over all layers.
        """
        squares = torch.cat([(after - before).square(), before.square(), before.new_zeros(1)])
        x_and_y = squares.take(self._rows).to(exact_dtype(squares.device))  # (n, 2, entries), with zeros behind
        taken = self._taken.clamp(min=1)
        means = x_and_y.sum(2).T / taken
        products = (x_and_y @ x_and_y.mT).flatten(1).T  # (4, n): of x and x, x and y, y and x, y and y
        centred = products[[0, 3, 1]] - taken * torch.stack([means[0] ** 2, means[1] ** 2, means[0] * means[1]])
        scale = (1 - self._taken / self._of.clamp(min=1)) * self._of.square() / taken / (taken - 1).clamp(min=1)
        return sum_over_parts(torch.cat([self._of * means, scale * centred]), self._weights)


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


def _rows(sizes: Sequence[int]) -> torch.Tensor:
    """(n, 2, most): where each tensor's x and y lie in all x, all y and a zero, one behind the other."""
    total, most = sum(sizes), max(sizes)
    rows = torch.full((len(sizes), 2, most), 2 * total)
    begin = 0
    for row, size in zip(rows, sizes, strict=True):
        row[0, :size] = torch.arange(begin, begin + size)
        row[1, :size] = row[0, :size] + total
        begin += size
    return rows

"""How large a step an optimizer takes, relative to the weights, from a sample of their entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
        parts = [_flat(weight) for weight in weights]
        self._weights = weights
        self._places = [_lattice(part.numel(), weight.shape) for part, weight in zip(parts, weights, strict=True)]
        device = parts[0].device
        sizes = torch.tensor([part[place].numel() for part, place in zip(parts, self._places, strict=True)])
        self._tensor = torch.repeat_interleave(torch.arange(len(parts)), sizes).to(device)
        self._taken = sizes.to(device, _exact(device))
        self._of = torch.tensor([part.numel() for part in parts]).to(device, _exact(device))

    def take(self) -> torch.Tensor:
        """The sampled entries as they are now: one copy of some 256 numbers a tensor."""
        sampled = [_flat(weight)[place] for weight, place in zip(self._weights, self._places, strict=True)]
        device = self._tensor.device
        return torch.cat([entries.to(device) for entries in sampled]).to(_exact(device))

    def moments(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """What :func:`ratio_of` needs, from the entries before and after an update.

        Returns:
            (5, n): of each tensor the estimated sums of x and y, the variances of both estimates and their covariance.
            They add up: over the tensors of a layer, and over all layers.
        """
        x, y = (after - before).square(), before.square()
        taken = self._taken.clamp(min=1)
        means = self._sums(torch.stack([x, y])) / taken
        dx, dy = x - means[0][self._tensor], y - means[1][self._tensor]
        squares = self._sums(torch.stack([dx * dx, dy * dy, dx * dy]))
        scale = (1 - self._taken / self._of.clamp(min=1)) * self._of.square() / taken / (taken - 1).clamp(min=1)
        return sum_over_parts(torch.cat([self._of * means, scale * squares]), self._weights)

    def _sums(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(values), len(self._places)).index_add_(1, self._tensor, values)


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


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no other

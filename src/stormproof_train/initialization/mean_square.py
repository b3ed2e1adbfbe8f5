"""What an activation leaves of a standard normal signal, measured from the activation itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from stormproof_train.errors import UserError, first_line
from stormproof_train.initialization.quadrature import normal_grid

DRAWN = 2**20
"""Elements at least of the batch on which an activation is measured that is not elementwise: good to about 0.3%."""
TRIED = 2**10
"""Elements at least of the batches that tell whether it is."""
FEWEST = 4
"""Samples of a batch at least, however large one is."""


def mean_square(activation: nn.Module, shape: Sequence[int] = (8,)) -> float:
    r"""The mean square of an activation's output where its input is standard normal.

    .. math:: E[\phi(z)^2] = \int \phi(z)^2 \, e^{-z^2/2} / \sqrt{2\pi} \, dz

    in float64, by the trapezoidal rule where the activation is elementwise. One that is not, such as softmax, is
    measured on a batch from a generator of this function's own. Nothing is drawn from the process's generators.

    Args:
        activation: measured in evaluation mode, on a copy; stays as it is.
        shape: of one sample of its input, without the batch dimension; counts where it is not elementwise, or has
            parameters for each unit.

    Raises:
        UserError: if the mean square is 0 or not finite, or the activation does not compute in float64.

    Example:
        >>> round(mean_square(nn.ReLU()), 6)
        0.5
        >>> round(mean_square(nn.ELU(alpha=0.5)), 3)  # 0.645 with alpha=1
        0.536

    References:
        Poole et al., Exponential expressivity in deep neural networks through transient chaos, 2016, equation 3.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            phi = copy.deepcopy(activation).double().eval()
            value = _over_a_grid(phi, shape) if is_elementwise(phi, shape) else _over_a_batch(phi, shape)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"initialization: {_name(activation)} cannot be measured in float64 ({first_line(error)}): set "
            "initialization=torch"
        ) from error
    if not math.isfinite(value) or value <= 0:
        raise UserError(
            f"initialization: the mean square of {_name(activation)} over standard normal input is {value}, and auto "
            "scales weights by its inverse root: choose another activation, or initialization=torch"
        )
    return value


def is_elementwise(activation: nn.Module, shape: Sequence[int]) -> bool:
    """Whether each output depends on the input at its own place alone, and all places are treated alike.

    Tried out: values that move to other places, into other company, have to keep their outputs.

    Args:
        activation: takes float64.
        shape: of one sample of its input.

    Example:
        >>> is_elementwise(nn.Tanh(), (8,)), is_elementwise(nn.Softmax(dim=1), (8,))
        (True, False)
    """
    generator = torch.Generator().manual_seed(0)
    before, after = (_normal_batch(TRIED, shape, generator) for _ in range(2))
    some = before.numel() // 2
    here, there = (torch.randperm(before.numel(), generator=generator)[:some] for _ in range(2))
    after.view(-1)[there] = before.view(-1)[here]
    one, other = activation(before), activation(after)
    if one.shape != before.shape:
        return False
    return torch.allclose(one.reshape(-1)[here], other.reshape(-1)[there], rtol=1e-5)


def _over_a_grid(phi: nn.Module, shape: Sequence[int]) -> float:
    z, weights = normal_grid(shape)
    return float((weights * phi(z).square()).sum())


def _over_a_batch(phi: nn.Module, shape: Sequence[int]) -> float:
    z = _normal_batch(DRAWN, shape, torch.Generator().manual_seed(0))
    return float(phi(z).square().mean())


def _normal_batch(elements: int, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    samples = max(FEWEST, math.ceil(elements / math.prod(shape)))
    return torch.randn(samples, *shape, generator=generator, dtype=torch.float64)


def _name(activation: nn.Module) -> str:
    return " ".join(str(activation).split())

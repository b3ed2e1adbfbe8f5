"""Measures the mean square of an activation's output for standard normal input."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from stormproof_train.errors import UserError, first_line

MIN_BATCH_ELEMENTS = 2**20
"""Minimum elements of the batch for activations that are not elementwise. Accurate to about 0.3%."""
MIN_PROBE_ELEMENTS = 2**10
"""Minimum elements of the batches that show if an activation is elementwise."""
MIN_SAMPLES = 4
"""Minimum samples in a batch, for large samples."""


def mean_square(activation: nn.Module, shape: Sequence[int] = (8,)) -> float:
    r"""Returns the mean square of an activation's output for standard normal input.

    .. math:: E[\phi(z)^2] = \int \phi(z)^2 \, e^{-z^2/2} / \sqrt{2\pi} \, dz

    Elementwise activations are integrated in float64 with the trapezoidal rule. Other activations, such as softmax, are
    measured on a batch from a local generator. The global random generator keeps its state.

    Args:
        activation: Activation. A copy of it is measured in evaluation mode.
        shape: Shape of one sample of its input, without the batch dimension. It matters if the activation is not
            elementwise or has parameters per unit.

    Raises:
        UserError: If the mean square is 0 or not finite, or the activation does not support float64.

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
            value = _integrate_on_grid(phi, shape) if is_elementwise(phi, shape) else _estimate_on_batch(phi, shape)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"initialization: {_describe(activation)} cannot be measured in float64 ({first_line(error)}). Set "
            "initialization=torch."
        ) from error
    if not math.isfinite(value) or value <= 0:
        raise UserError(
            f"initialization: auto scales weights by the mean square of {_describe(activation)} for standard normal "
            f"input, which is {value}. Choose another activation, or initialization=torch."
        )
    return value


def is_elementwise(activation: nn.Module, shape: Sequence[int]) -> bool:
    """Returns True if each output depends only on the input at the same position, in the same way everywhere.

    The test moves values to other positions among other values and compares their outputs.

    Args:
        activation: Activation that supports float64.
        shape: Shape of one sample of its input.

    Example:
        >>> is_elementwise(nn.Tanh(), (8,)), is_elementwise(nn.Softmax(dim=1), (8,))
        (True, False)
    """
    generator = torch.Generator().manual_seed(0)
    original, permuted = (_normal_batch(MIN_PROBE_ELEMENTS, shape, generator) for _ in range(2))
    num_moved = original.numel() // 2
    source, destination = (torch.randperm(original.numel(), generator=generator)[:num_moved] for _ in range(2))
    permuted.view(-1)[destination] = original.view(-1)[source]
    original_output, permuted_output = activation(original), activation(permuted)
    if original_output.shape != original.shape:
        return False
    return torch.allclose(original_output.reshape(-1)[source], permuted_output.reshape(-1)[destination], rtol=1e-5)


def _integrate_on_grid(phi: nn.Module, shape: Sequence[int]) -> float:
    z, weights = normal_grid(shape)
    return float((weights * phi(z).square()).sum())


def _estimate_on_batch(phi: nn.Module, shape: Sequence[int]) -> float:
    z = _normal_batch(MIN_BATCH_ELEMENTS, shape, torch.Generator().manual_seed(0))
    return float(phi(z).square().mean())


def _normal_batch(elements: int, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    samples = max(MIN_SAMPLES, math.ceil(elements / math.prod(shape)))
    return torch.randn(samples, *shape, generator=generator, dtype=torch.float64)


def _describe(activation: nn.Module) -> str:
    return " ".join(str(activation).split())


_MIN_POINTS = 2**16
"""Minimum number of grid points. A jump of the activation causes an error of up to 1e-4, a kink much less."""
_GRID_LIMIT = 10.0
"""Limit of the grid in standard deviations. The mass outside of it is 1.5e-23."""


def normal_grid(shape: Sequence[int], points: int = _MIN_POINTS) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Returns points z and weights w with :math:`E[f(z)] \approx \sum w f(z)` for standard normal z.

    Uses the trapezoidal rule, which converges exponentially for smooth f.

    Args:
        shape: Shape of one sample. The number of samples is chosen so that there are enough points.
        points: Minimum number of points.

    Returns:
        Points and weights, both ``(samples, *shape)`` in float64.

    Example:
        >>> z, weights = normal_grid((8,))
        >>> round((weights * z**4).sum().item(), 9)
        3.0

    References:
        Trefethen & Weideman, The exponentially convergent trapezoidal rule, 2014.
    """
    samples = math.ceil(points / math.prod(shape))
    z = torch.linspace(-_GRID_LIMIT, _GRID_LIMIT, samples * math.prod(shape), dtype=torch.float64).reshape(
        samples, *shape
    )
    density = torch.exp(-z.square() / 2)
    return z, density / density.sum()

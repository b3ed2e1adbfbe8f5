"""Classifies dead units by their constant value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from torch import nn

DeadUnitKind = Literal["zero", "saturated low", "saturated high", "constant", "never wins"]

_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "sigmoid": (0.0, 1.0),
    "special_expit": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "softmax2d": (0.0, 1.0),
    "softmin": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu6": (None, 6.0),
    "selu": (-1.0507009873554805 * 1.6732632423543772, None),
    "rnn": (-1.0, 1.0),
    "lstm": (-1.0, 1.0),
    "gru": (-1.0, 1.0),
    "rnncell": (-1.0, 1.0),
    "lstmcell": (-1.0, 1.0),
    "grucell": (-1.0, 1.0),
}


def saturation_bounds(function: str, module: nn.Module) -> tuple[float | None, float | None]:
    """Returns the lower and upper saturation value of an activation. None for a side without saturation or at 0.

    Args:
        function: Name of the activation in lower case.
        module: Module that applies the activation. ``alpha``, ``min_val`` and ``max_val`` are read from it.

    Example:
        >>> saturation_bounds("elu", nn.ELU(alpha=0.5)), saturation_bounds("relu", nn.ReLU())
        ((-0.5, None), (None, None))
    """
    if function in {"elu", "celu"}:
        return -float(getattr(module, "alpha", 1.0)), None
    if function == "hardtanh":
        return float(getattr(module, "min_val", -1.0)), float(getattr(module, "max_val", 1.0))
    return _BOUNDS.get(function, (None, None))


def count_kinds(values: Sequence[float], limits: tuple[float | None, float | None]) -> dict[DeadUnitKind, int]:
    """Returns the number of dead units of each kind.

    Args:
        values: Constant output of each dead unit.
        limits: Result of :func:`saturation_bounds`.

    Example:
        >>> count_kinds([1.0, 1.0, 0.0, 0.3], saturation_bounds("sigmoid", nn.Sigmoid()))
        {'saturated high': 2, 'saturated low': 1, 'constant': 1}
    """
    low, high = limits
    return dict(Counter(_classify(value, low, high) for value in values))


def _classify(value: float, low: float | None, high: float | None) -> DeadUnitKind:
    if _is_close(value, low):
        return "saturated low"
    if _is_close(value, high):
        return "saturated high"
    return "zero" if value == 0 else "constant"


def _is_close(value: float, bound: float | None) -> bool:
    return bound is not None and abs(value - bound) <= 1e-6 * abs(bound)  # rounding error of float32

"""Validates the widths of hidden layers."""

from __future__ import annotations

from collections.abc import Sequence


def hidden_widths(width: int, depth: int, widths: Sequence[int] | None, dropout: float) -> list[int]:
    """Returns the width of each hidden layer: ``widths`` if given, else ``depth`` times ``width``.

    Raises:
        ValueError: If a width is below 1, the depth is negative, or dropout is outside [0, 1).

    Example:
        >>> hidden_widths(64, 2, None, 0.0)
        [64, 64]
    """
    if depth < 0:
        raise ValueError(f"`depth` must be at least 0, got {depth}.")
    layer_widths = list(widths) if widths is not None else [width] * depth
    if any(units < 1 for units in layer_widths):
        raise ValueError(f"`widths` must be at least 1 for each layer, got {layer_widths}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {dropout}.")
    return layer_widths

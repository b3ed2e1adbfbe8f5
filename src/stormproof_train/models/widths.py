"""The widths of a network's hidden layers, checked."""

from __future__ import annotations

from collections.abc import Sequence


def hidden_widths(width: int, depth: int, widths: Sequence[int] | None, dropout: float) -> list[int]:
    """The width of each hidden layer: ``widths`` where given, else ``depth`` times ``width``.

    Raises:
        ValueError: a width below 1, a negative depth, or dropout outside [0, 1).

    Example:
        >>> hidden_widths(64, 2, None, 0.0)
        [64, 64]
    """
    if depth < 0:
        raise ValueError(f"depth is {depth} layers; it must be at least 0")
    layer_widths = list(widths) if widths is not None else [width] * depth
    if any(units < 1 for units in layer_widths):
        raise ValueError(f"widths are {layer_widths}; each layer needs at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
    return layer_widths

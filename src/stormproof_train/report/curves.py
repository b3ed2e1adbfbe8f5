"""What was logged over the steps, as few numbers as a drawing needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stormproof_train.report.kit.json_numbers import rounded
from stormproof_train.report.kit.thinning import thinned
from stormproof_train.report.logged import Series

LAYERS = ("gradients/norm", "updates/ratio", "units/dead_fraction", "units/silent_fraction", "units/sparsity")
"""The groups of names that have one of each layer."""
BUCKETS = 150
"""Of a curve at most: four points of each are about as many as a screen has columns."""
ALL_BUCKETS = 12_000
"""Of all curves of a page, about as many at most."""


def buckets_for(curves: int) -> int:
    """Into how many buckets each of so many curves is put."""
    return max(10, min(BUCKETS, ALL_BUCKETS // max(1, curves)))


def are_curves(logged: Mapping[str, Series]) -> list[str]:
    """The names that have values over the steps, and are not of a layer."""
    return [
        name
        for name in logged
        if not name.startswith("test/") and not any(name.startswith(f"{group}/") for group in LAYERS)
    ]


def curve(series: Series, buckets: int) -> dict[str, Any]:
    """A series thinned, and the numbers that stand for it.

    Args:
        series: of any length above 0.
        buckets: into which its points are put.

    Returns:
        ``points``, how many there are; ``steps`` and ``values`` of those drawn, with None for what is not finite;
        ``last``; ``smallest`` and ``largest``, each with its step, None where nothing is finite; ``non_finite``, how
        many are not, and ``non_finite_since``, the step of the first of them, or None.
    """
    kept = thinned(series.values, buckets)
    finite = np.flatnonzero(np.isfinite(series.values))
    broken = np.flatnonzero(~np.isfinite(series.values))
    low = int(finite[series.values[finite].argmin()]) if len(finite) else None
    high = int(finite[series.values[finite].argmax()]) if len(finite) else None
    return {
        "points": len(series),
        "steps": series.steps[kept].tolist(),
        "values": rounded(series.values[kept].tolist()),
        "last": float(series.values[-1]),
        "smallest": _at(series, low),
        "largest": _at(series, high),
        "non_finite": len(broken),
        "non_finite_since": int(series.steps[broken[0]]) if len(broken) else None,
    }


def _at(series: Series, place: int | None) -> dict[str, Any] | None:
    return None if place is None else {"step": int(series.steps[place]), "value": float(series.values[place])}

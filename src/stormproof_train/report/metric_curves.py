"""Summarizes logged metrics over the steps with as few points as a chart needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from stormproof_train.report.kit.json_numbers import round_for_json
from stormproof_train.report.kit.thinning import thin_indices
from stormproof_train.report.logged import Series

LAYER_GROUPS = ("gradients/norm", "updates/ratio", "units/dead_fraction", "units/silent_fraction", "units/sparsity")
"""Groups of names with one series per layer."""
MAX_BUCKETS = 150
"""Maximum number of buckets of a curve. At four points each, about one point per pixel column."""
MAX_TOTAL_BUCKETS = 12_000
"""Approximate maximum number of buckets of all curves of a page."""


class CurvePoint(TypedDict):
    """A point of a curve."""

    step: int
    value: float


class CurveSummary(TypedDict):
    """A curve as the report draws it.

    Attributes:
        points: Number of points before thinning.
        steps: Steps of the drawn points.
        values: Values of the drawn points. None if not finite.
        last: Last value.
        smallest: None if no value is finite.
        largest: None if no value is finite.
        non_finite: Number of values that are not finite.
        non_finite_since: Step of the first of them. None if all are finite.
    """

    points: int
    steps: list[int]
    values: list[float | None]
    last: float
    smallest: CurvePoint | None
    largest: CurvePoint | None
    non_finite: int
    non_finite_since: int | None


def buckets_per_curve(num_curves: int) -> int:
    """Returns the number of buckets of each curve for a number of curves."""
    return max(10, min(MAX_BUCKETS, MAX_TOTAL_BUCKETS // max(1, num_curves)))


def curve_names(logged: Mapping[str, Series]) -> list[str]:
    """Returns the names of series over the steps that do not belong to a layer."""
    return [
        name
        for name in logged
        if not name.startswith("test/") and not any(name.startswith(f"{group}/") for group in LAYER_GROUPS)
    ]


def summarize_curve(series: Series, buckets: int) -> CurveSummary:
    """Thins a series and computes its summary statistics.

    Args:
        series: Series with at least one value.
        buckets: Number of buckets for thinning.
    """
    indices = thin_indices(series.values, buckets)
    finite_indices = np.flatnonzero(np.isfinite(series.values))
    non_finite = np.flatnonzero(~np.isfinite(series.values))
    lowest_index = int(finite_indices[series.values[finite_indices].argmin()]) if len(finite_indices) else None
    highest_index = int(finite_indices[series.values[finite_indices].argmax()]) if len(finite_indices) else None
    return {
        "points": len(series),
        "steps": series.steps[indices].tolist(),
        "values": round_for_json(series.values[indices].tolist()),
        "last": float(series.values[-1]),
        "smallest": _point_at(series, lowest_index),
        "largest": _point_at(series, highest_index),
        "non_finite": len(non_finite),
        "non_finite_since": int(series.steps[non_finite[0]]) if len(non_finite) else None,
    }


def _point_at(series: Series, index: int | None) -> CurvePoint | None:
    return None if index is None else {"step": int(series.steps[index]), "value": float(series.values[index])}

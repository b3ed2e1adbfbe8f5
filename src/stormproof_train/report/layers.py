"""Summarizes a logged value of each layer as the cells of a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from stormproof_train.report.kit.json_numbers import round_for_json
from stormproof_train.report.logged import Series

MAX_COLUMNS = 120
"""Maximum number of columns, more than a phone can show and fewer than a screen can."""
MAX_CELLS = 4_000
"""Approximate maximum number of cells of a heat map. More layers get fewer columns."""


class LayerCells(TypedDict):
    """Cells of a heat map. Rows are layers, columns are intervals of steps.

    Attributes:
        layers: Names of the layers.
        starts: Step before each column.
        ends: Last step of each column.
        largest: Largest finite value of each cell. None without finite values.
        smallest: Smallest finite value of each cell. None without finite values.
        non_finite: Number of values of each cell that are not finite.
    """

    layers: list[str]
    starts: list[int]
    ends: list[int]
    largest: list[list[float | None]]
    smallest: list[list[float | None]]
    non_finite: list[list[int]]


def compute_layer_cells(logged: Mapping[str, Series], group: str) -> LayerCells | None:
    """Summarizes the series ``<group>/<layer>`` of a group in cells with equal numbers of logged steps.

    Args:
        logged: All logged series by name.
        group: Prefix of the names, such as ``gradients/norm``.

    Returns:
        The cells, or None if no layer has values.
    """
    series = {
        name.removeprefix(f"{group}/"): layer_series
        for name, layer_series in logged.items()
        if name.startswith(f"{group}/")
    }
    if not series:
        return None
    # most layers have the same steps
    distinct_steps = {layer_series.steps.tobytes(): layer_series.steps for layer_series in series.values()}
    steps = np.unique(np.concatenate(list(distinct_steps.values())))
    columns = min(len(steps), max(20, min(MAX_COLUMNS, MAX_CELLS // len(series))))
    ends = steps[np.arange(1, columns + 1) * len(steps) // columns - 1]
    first_start = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)
    cells = [_series_cells(layer_series, ends) for layer_series in series.values()]
    return {
        "layers": list(series),
        "starts": [int(max(first_start, -1)), *ends[:-1].tolist()],
        "ends": ends.tolist(),
        "largest": [round_for_json(largest) for largest, _, _ in cells],
        "smallest": [round_for_json(smallest) for _, smallest, _ in cells],
        "non_finite": [counts.tolist() for _, _, counts in cells],
    }


def _series_cells(series: Series, ends: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    columns = np.searchsorted(ends, series.steps)
    finite = np.isfinite(series.values)
    largest, smallest = np.full(len(ends), -np.inf), np.full(len(ends), np.inf)
    np.maximum.at(largest, columns[finite], series.values[finite])
    np.minimum.at(smallest, columns[finite], series.values[finite])
    return largest, smallest, np.bincount(columns[~finite], minlength=len(ends))

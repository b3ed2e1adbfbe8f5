"""A number of each layer over time, as the cells of a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.report.kit.json_numbers import rounded
from stormproof_train.report.logged import Series

COLUMNS = 120
"""More than a phone can show, and fewer than a screen could."""
CELLS = 4_000
"""Of a heat map, about as many at most: the more layers, the fewer columns."""


def of_layers(logged: Mapping[str, Series], group: str) -> dict[str, Any] | None:
    """The values of a group's layers, ``<group>/<layer>``, in cells of as many logged steps each.

    Args:
        logged: everything that was.
        group: such as ``gradients/norm``.

    Returns:
        ``layers``, their names; ``starts`` and ``ends``, of each column the step behind which it begins and its last;
        and with a row for each layer and a value for each column the ``largest``, the ``smallest`` (None where there is
        no finite one) and ``non_finite``, how many are not. None where no layer has values.
    """
    series = {name.removeprefix(f"{group}/"): each for name, each in logged.items() if name.startswith(f"{group}/")}
    if not series:
        return None
    steps = np.unique(np.concatenate([each.steps for each in series.values()]))
    columns = min(len(steps), max(20, min(COLUMNS, CELLS // len(series))))
    ends = steps[np.arange(1, columns + 1) * len(steps) // columns - 1]
    first = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)
    cells = [_cells(each, ends) for each in series.values()]
    return {
        "layers": list(series),
        "starts": [int(max(first, -1)), *ends[:-1].tolist()],
        "ends": ends.tolist(),
        "largest": [rounded(largest) for largest, _, _ in cells],
        "smallest": [rounded(smallest) for _, smallest, _ in cells],
        "non_finite": [counts.tolist() for _, _, counts in cells],
    }


def _cells(series: Series, ends: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    place = np.searchsorted(ends, series.steps)
    finite = np.isfinite(series.values)
    largest, smallest = np.full(len(ends), -np.inf), np.full(len(ends), np.inf)
    np.maximum.at(largest, place[finite], series.values[finite])
    np.minimum.at(smallest, place[finite], series.values[finite])
    return largest, smallest, np.bincount(place[~finite], minlength=len(ends))

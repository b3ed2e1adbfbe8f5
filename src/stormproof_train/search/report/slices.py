"""Draws an objective over one parameter."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from stormproof_train.report.kit.axis import FORMAT, TITLE_LIMIT, Axis, format_tick, parameter_axis, value_axis
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.json_numbers import round_for_json
from stormproof_train.report.kit.marks import layered_columns, style_encoding
from stormproof_train.search.objectives import Objective
from stormproof_train.search.report.marks import MARKS, legend, mark_of
from stormproof_train.search.report.search_info import ParameterInfo, SearchInfo, TrialInfo, format_objective

NUM_PARTS = 4
"""Number of intervals of a numeric parameter in the table."""
GOLDEN_RATIO = 0.618034
"""Golden ratio. Its multiples modulo 1 are evenly spread, which separates the points of a column horizontally."""
Part = tuple[str, list[float]]
"""Name of an interval or choice, with values of the objective."""
_FIELDS = ("at", "value", "style", "trial", "offset")


def slice_chart(search: SearchInfo, objective_index: int, parameter: ParameterInfo) -> Chart | None:
    """Draws the objective over one parameter. Returns None if no trial has both values.

    Args:
        search: Search with the trials.
        objective_index: Index of the objective.
        parameter: A number or a choice. Trials without this parameter are not drawn.
    """
    objective = search.objectives[objective_index]
    rows = [row for trial in search.trials if (row := _row(trial, search, objective_index, parameter)) is not None]
    if not rows:
        return None
    y_axis = value_axis([row["value"] for row in rows], higher_is_better=objective.higher_is_better)
    if parameter.choices is None:
        x_axis = parameter_axis([row["at"] for row in rows], parameter.low, parameter.high, is_log=parameter.is_log)
        x_encoding, table = (
            x_axis.encoding("at", parameter.key),
            _parts_table(_group_by_interval(rows, x_axis), objective),
        )
    else:
        choices = list(dict.fromkeys([*parameter.choices, *(row["at"] for row in rows)]))
        x_encoding, table = (
            _choice_encoding(parameter.key, choices),
            _parts_table(_group_by_choice(rows, choices), objective),
        )
    return Chart(
        title=f"{objective.name} over {parameter.key}",
        text=f"{objective.name} of {len(rows):,} trials over {parameter.key}. {_describe(table)}",
        spec=_spec(objective.name, y_axis, x_encoding),
        data={"points": layered_columns(rows, _FIELDS, MARKS)},
        legend=legend({mark_of(trial, search) for trial in search.trials}, search),
        is_filled=True,
        note=y_axis.note(objective.name),
        table=table,
    )


def _row(trial: TrialInfo, search: SearchInfo, objective_index: int, parameter: ParameterInfo) -> dict[str, Any] | None:
    value = trial.value(objective_index)
    parameter_value = parameter.numeric_value(trial) if parameter.choices is None else parameter.text_value(trial)
    if value is None or parameter_value is None:
        return None
    return {
        "at": parameter_value if isinstance(parameter_value, str) else round_for_json([parameter_value])[0],
        "value": round_for_json([value])[0],
        "style": mark_of(trial, search),
        "trial": trial.number,
        "offset": round(trial.number * GOLDEN_RATIO % 1, 3),
        "complete": trial.is_complete,
    }


def _group_by_choice(rows: Sequence[dict[str, Any]], choices: Sequence[str]) -> list[Part]:
    """Returns the values of complete trials by choice."""
    return [(choice, [row["value"] for row in rows if row["at"] == choice and row["complete"]]) for choice in choices]


def _group_by_interval(rows: Sequence[dict[str, Any]], axis: Axis) -> list[Part]:
    """Returns the values of complete trials by intervals of equal width on the axis."""
    num_parts = 1 if axis.low == axis.high else NUM_PARTS
    bounds = [format_tick(axis.value_at(index / num_parts)) for index in range(num_parts + 1)]
    groups: list[list[float]] = [[] for _ in range(num_parts)]
    for row in rows:
        if row["complete"]:
            groups[min(num_parts - 1, int(num_parts * axis.position(row["at"])))].append(row["value"])
    return [(f"{low} to {high}", values) for low, high, values in zip(bounds, bounds[1:], groups, strict=False)]


def _parts_table(parts: Sequence[Part], objective: Objective) -> Table:
    best_of = max if objective.higher_is_better else min
    return Table(
        ("", "complete trials", "best", "median"),
        [
            (
                label, f"{len(values):,}", format_objective(best_of(values, default=None)),
                format_objective(statistics.median(values)) if values else "",
            )
            for label, values in parts
        ],
    )  # fmt: skip


def _describe(table: Table) -> str:
    phrases = [f"{label}: best {best}, median {median}" for label, _, best, median in table.rows if best]
    return f"Complete trials: {'; '.join(phrases)}." if phrases else "No trial is complete."


def _choice_encoding(key: str, choices: Sequence[str]) -> dict[str, Any]:
    axis = {
        "labelAngle": -40 if len(choices) > 4 else 0, "labelLimit": 90, "labelOverlap": True, "ticks": False,
        "titleLimit": TITLE_LIMIT,
    }  # fmt: skip
    return {"field": "at", "type": "nominal", "title": key, "scale": {"domain": choices}, "axis": axis}


def _spec(name: str, y_axis: Axis, x_encoding: dict[str, Any]) -> dict[str, Any]:
    is_choice = x_encoding["type"] == "nominal"
    jitter = {"field": "offset", "type": "quantitative", "scale": {"domain": [-0.3, 1.3]}}
    return {
        "width": "container",
        "height": 220,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "points"},
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "x": x_encoding,
            **({"xOffset": jitter} if is_choice else {}),
            "y": y_axis.encoding("value", name),
            **style_encoding(MARKS),
            "tooltip": [
                {"field": "trial", "title": "trial"},
                {
                    "field": "at",
                    "title": "parameter",
                    **({} if is_choice else {"type": "quantitative", "format": FORMAT}),
                },
                {"field": "value", "title": "value", "format": ".6~g"},
            ],
        },
    }

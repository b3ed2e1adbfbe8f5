"""An objective over one parameter, whatever the others were."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from stormproof_train.report.kit.axis import FORMAT, TITLE_LIMIT, Axis, parameter_axis, tick_text, value_axis
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.json_numbers import rounded
from stormproof_train.report.kit.marks import in_layers, look_encoding
from stormproof_train.search.objectives import Objective
from stormproof_train.search.report.looks import LOOKS, legend, look_of
from stormproof_train.search.report.trials import Parameter, Search, Trial, value_text

PARTS = 4
"""Into so many parts of equal width the table puts a parameter that is a number."""
GOLDEN = 0.618034
"""Multiples of it, modulo 1, are spread evenly: so points of one column lie beside each other."""
Part = tuple[str, list[float]]
"""Of a parameter, by its name, with values of the objective."""
_FIELDS = ("at", "value", "look", "trial", "beside")


def slice_chart(search: Search, place: int, parameter: Parameter) -> Chart | None:
    """Draws each trial's value of an objective over its value of one parameter; None where no trial has both.

    Args:
        search: whose trials they are.
        place: of the objective.
        parameter: a number or a choice; a trial in which it has no part is not drawn.
    """
    objective = search.objectives[place]
    rows = [row for trial in search.trials if (row := _row(trial, search, place, parameter)) is not None]
    if not rows:
        return None
    values = value_axis([row["value"] for row in rows], higher_is_better=objective.higher_is_better)
    if parameter.choices is None:
        axis = parameter_axis([row["at"] for row in rows], parameter.low, parameter.high, is_log=parameter.is_log)
        over, table = axis.encoding("at", parameter.key), _table(_by_stretch(rows, axis), objective)
    else:
        choices = list(dict.fromkeys([*parameter.choices, *(row["at"] for row in rows)]))
        over, table = _columns(parameter.key, choices), _table(_by_choice(rows, choices), objective)
    return Chart(
        title=f"{objective.name} over {parameter.key}",
        text=f"{objective.name} of {len(rows):,} trials over {parameter.key}. {_in_words(table)}",
        spec=_spec(objective.name, values, over),
        data={"points": in_layers(rows, _FIELDS, LOOKS)},
        legend=legend({look_of(trial, search) for trial in search.trials}, search),
        is_filled=True,
        note=values.note(objective.name),
        table=table,
    )


def _row(trial: Trial, search: Search, place: int, parameter: Parameter) -> dict[str, Any] | None:
    value = trial.value(place)
    at = parameter.number(trial) if parameter.choices is None else parameter.text(trial)
    if value is None or at is None:
        return None
    return {
        "at": at if isinstance(at, str) else rounded([at])[0],
        "value": rounded([value])[0],
        "look": look_of(trial, search),
        "trial": trial.number,
        "beside": round(trial.number * GOLDEN % 1, 3),
        "complete": trial.is_complete,
    }


def _by_choice(rows: Sequence[dict[str, Any]], choices: Sequence[str]) -> list[Part]:
    """Of each choice the values of complete trials."""
    return [(choice, [row["value"] for row in rows if row["at"] == choice and row["complete"]]) for choice in choices]


def _by_stretch(rows: Sequence[dict[str, Any]], axis: Axis) -> list[Part]:
    """Of parts of the axis of equal width the values of complete trials."""
    parts = 1 if axis.low == axis.high else PARTS
    ends = [tick_text(axis.at(part / parts)) for part in range(parts + 1)]
    stretches: list[list[float]] = [[] for _ in range(parts)]
    for row in rows:
        if row["complete"]:
            stretches[min(parts - 1, int(parts * axis.position(row["at"])))].append(row["value"])
    return [(f"{low} to {high}", values) for low, high, values in zip(ends, ends[1:], stretches, strict=False)]


def _table(parts: Sequence[Part], objective: Objective) -> Table:
    best = max if objective.higher_is_better else min
    return Table(
        ("", "complete trials", "best", "median"),
        [
            (
                label, f"{len(values):,}", value_text(best(values, default=None)),
                value_text(statistics.median(values)) if values else "",
            )
            for label, values in parts
        ],
    )  # fmt: skip


def _in_words(table: Table) -> str:
    told = [f"{label}: best {best}, median {median}" for label, _, best, median in table.rows if best]
    return f"Complete ones by part: {'; '.join(told)}." if told else "None of them is complete."


def _columns(key: str, choices: Sequence[str]) -> dict[str, Any]:
    axis = {
        "labelAngle": -40 if len(choices) > 4 else 0, "labelLimit": 90, "labelOverlap": True, "ticks": False,
        "titleLimit": TITLE_LIMIT,
    }  # fmt: skip
    return {"field": "at", "type": "nominal", "title": key, "scale": {"domain": choices}, "axis": axis}


def _spec(name: str, values: Axis, over: dict[str, Any]) -> dict[str, Any]:
    is_choice = over["type"] == "nominal"
    beside = {"field": "beside", "type": "quantitative", "scale": {"domain": [-0.3, 1.3]}}
    return {
        "width": "container",
        "height": 220,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "points"},
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "x": over,
            **({"xOffset": beside} if is_choice else {}),
            "y": values.encoding("value", name),
            **look_encoding(LOOKS),
            "tooltip": [
                {"field": "trial", "title": "trial"},
                {"field": "at", "title": "is", **({} if is_choice else {"type": "quantitative", "format": FORMAT})},
                {"field": "value", "title": "value", "format": ".6~g"},
            ],
        },
    }

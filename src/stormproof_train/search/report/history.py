"""Draws the best value over the steps spent so far."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from stormproof_train.report.kit.axis import Axis, value_axis
from stormproof_train.report.kit.chart import STEP_ENCODING, Chart, Line, Table
from stormproof_train.report.kit.json_numbers import finite_or_none, round_for_json
from stormproof_train.report.kit.marks import layered_columns, style_encoding
from stormproof_train.search.records import RandomSearchRecord
from stormproof_train.search.report.marks import MARKS, legend, mark_of
from stormproof_train.search.report.search_info import SearchInfo, TrialInfo, format_objective

BEST_LINE, RANDOM_LINE = Line("best so far", 1), Line("expected of random search", 7)
MAX_TOOLTIP_LENGTH = 160
"""Maximum number of characters of a trial's parameters in its tooltip."""
_FIELDS = ("spent", "value", "style", "trial", "state", "overrides")


def history_chart(search: SearchInfo, objective_index: int, random_search: RandomSearchRecord | None) -> Chart:
    """Draws the value of each trial over the steps spent until it ended.

    Args:
        search: Search with at least one trial.
        objective_index: Index of the objective.
        random_search: Expected result of random search for this objective, or None.
    """
    objective = search.objectives[objective_index]
    cumulative_steps = list(itertools.accumulate(trial.steps for trial in search.trials))
    expected_best = finite_or_none(random_search["expected"]) if random_search else None
    values = [value for trial in search.trials if (value := trial.value(objective_index)) is not None]
    axis_values = values if expected_best is None else [*values, expected_best]
    axis = value_axis(axis_values, higher_is_better=objective.higher_is_better)
    points = [
        _point(trial, steps, search, objective_index)
        for trial, steps in zip(search.trials, cumulative_steps, strict=True)
    ]
    improvements = _find_improvements(search, objective_index, cumulative_steps)
    best_so_far = [*improvements, (cumulative_steps[-1], *improvements[-1][1:])] if improvements else []
    points_without_value = [point for point in points if point["value"] is None]
    bottom_note = "Trials without a value are drawn at the bottom." if points_without_value else ""
    return Chart(
        title=f"{objective.name} over the steps spent",
        text=_describe(objective.name, search, improvements, expected_best),
        spec=_spec(objective.name, axis, cumulative_steps[-1]),
        data={
            "points": layered_columns([point for point in points if point["value"] is not None], _FIELDS, MARKS),
            "valueless": layered_columns(points_without_value, _FIELDS, MARKS),
            "best so far": {
                "spent": [steps for steps, *_ in best_so_far],
                "value": round_for_json([value for *_, value in best_so_far]),
            },
            "random": {"level": [] if expected_best is None else round_for_json([expected_best])},
        },
        legend=[
            *legend({point["style"] for point in points}, search), *([BEST_LINE] if improvements else []),
            *([RANDOM_LINE] if expected_best is not None else []),
        ],
        is_filled=True,
        note=" ".join(filter(None, (bottom_note, axis.note(objective.name)))),
        table=Table(
            ("trial", f"best {objective.name} so far", "steps spent"),
            [(str(number), format_objective(value), f"{steps:,}") for steps, number, value in improvements],
        ),
    )  # fmt: skip


def _point(trial: TrialInfo, steps: int, search: SearchInfo, objective_index: int) -> dict[str, Any]:
    value = trial.value(objective_index)
    overrides = trial.overrides
    return {
        "spent": steps,
        "value": None if value is None else round_for_json([value])[0],
        "style": mark_of(trial, search) if value is not None or trial.state != "complete" else "failed",
        "trial": trial.number,
        "state": trial.state,
        "overrides": overrides if len(overrides) <= MAX_TOOLTIP_LENGTH else f"{overrides[:MAX_TOOLTIP_LENGTH]} …",
    }


def _find_improvements(
    search: SearchInfo, objective_index: int, cumulative_steps: Sequence[int]
) -> list[tuple[int, int, float]]:
    """Returns steps spent, number and value of each trial that was the best when it ended."""
    objective = search.objectives[objective_index]
    improvements: list[tuple[int, int, float]] = []
    for trial, steps in zip(search.trials, cumulative_steps, strict=True):
        value = trial.values[objective_index]
        if value is None or not trial.is_complete or not trial.is_feasible:
            continue
        if not improvements or objective.as_loss(value) < objective.as_loss(improvements[-1][2]):
            improvements.append((steps, trial.number, value))
    return improvements


def _describe(
    name: str, search: SearchInfo, improvements: Sequence[tuple[int, int, float]], expected_best: float | None
) -> str:
    text = f"{name} of {len(search.trials):,} trials over the steps spent until each ended."
    if improvements:
        steps, number, value = improvements[-1]
        text += (
            f" The best was {format_objective(improvements[0][2])} at first and {format_objective(value)} at the end, "
            f"reached by trial {number} after {steps:,} steps."
        )
    return (
        text
        if expected_best is None
        else f"{text} Random search is expected to reach {format_objective(expected_best)}."
    )


def _spec(name: str, axis: Axis, total_steps: int) -> dict[str, Any]:
    tooltip = [
        {"field": "trial", "title": "trial"}, {"field": "state", "title": "state"},
        {"field": "value", "title": "value", "format": ".6~g"},
        {"field": "spent", "title": "steps spent", "format": ",d"}, {"field": "overrides", "title": "parameters"},
    ]  # fmt: skip
    value = axis.encoding("value", name)
    point_mark = {"type": "point", "filled": True}
    steps = {**STEP_ENCODING, "title": "steps spent", "scale": {"domain": [0, max(1, total_steps)], "nice": False}}
    return {
        "width": "container",
        "height": 280,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "random"},
                "mark": {"type": "rule", "color": RANDOM_LINE.color, "strokeDash": [6, 4], "strokeWidth": 1.5},
                "encoding": {"y": {**value, "field": "level"}},
            },
            {
                "data": {"name": "best so far"},
                "mark": {"type": "line", "color": BEST_LINE.color, "interpolate": "step-after"},
                "encoding": {"x": {"field": "spent", **steps}, "y": value},
            },
            {
                "data": {"name": "points"}, "mark": point_mark,
                "encoding": {"x": {"field": "spent", **steps}, "y": value, **style_encoding(MARKS), "tooltip": tooltip},
            },
            {
                "data": {"name": "valueless"}, "mark": point_mark,
                "encoding": {
                    "x": {"field": "spent", **steps}, "y": {"value": 274}, **style_encoding(MARKS), "tooltip": tooltip,
                },
            },
        ],
    }  # fmt: skip

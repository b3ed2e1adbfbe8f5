"""Draws objectives against each other and lists the trials on the Pareto front."""

from __future__ import annotations

from typing import Any

from stormproof_train.report.kit.axis import value_axis
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.json_numbers import round_for_json
from stormproof_train.report.kit.marks import layered_columns, style_encoding
from stormproof_train.search.objectives import Objective
from stormproof_train.search.report.marks import MARKS, legend, mark_of
from stormproof_train.search.report.search_info import SearchInfo, format_objective


def front_charts(search: SearchInfo) -> list[Chart]:
    """Draws each further objective over the first one. Pairs without complete trials are omitted.

    Args:
        search: Search with at least two objectives.
    """
    charts = [_pair_chart(search, objective_index) for objective_index in range(1, len(search.objectives))]
    return [chart for chart in charts if chart is not None]


def front_table(search: SearchInfo) -> Table:
    """Returns the trials on the Pareto front with all objectives, ordered by the first objective."""
    trials = [trial for trial in search.ranked_trials(0) if trial.number in search.best_trial_numbers]
    head = ("trial", *(objective.name for objective in search.objectives), "parameters")
    return Table(head, [(str(trial.number), *map(format_objective, trial.values), trial.overrides) for trial in trials])


def _pair_chart(search: SearchInfo, objective_index: int) -> Chart | None:
    first_objective, second_objective = search.objectives[0], search.objectives[objective_index]
    rows: list[dict[str, Any]] = []
    for trial in search.ranked_trials(0):
        x, y = trial.values[0], trial.values[objective_index]
        if x is not None and y is not None:
            x, y = round_for_json([x, y])
            rows.append({"x": x, "y": y, "style": mark_of(trial, search), "trial": trial.number})
    if not rows:
        return None
    x_axis = value_axis([row["x"] for row in rows], higher_is_better=first_objective.higher_is_better)
    y_axis = value_axis([row["y"] for row in rows], higher_is_better=second_objective.higher_is_better)
    front = sorted((row["x"], row["y"]) for row in rows if row["style"] == "best")
    has_two_objectives = len(search.objectives) == 2
    return Chart(
        title=f"{second_objective.name} over {first_objective.name}",
        text=(
            f"{second_objective.name} over {first_objective.name} of {len(rows):,} complete trials, {len(front):,} of "
            f"which are on the Pareto front: "
            f"{'; '.join(f'{format_objective(x)} and {format_objective(y)}' for x, y in front)}."
        ),
        spec=_spec(x_axis.encoding("x", first_objective.name), y_axis.encoding("y", second_objective.name)),
        data={
            "points": layered_columns(rows, ("x", "y", "style", "trial"), MARKS),
            "front": {
                "x": [x for x, _ in front] if has_two_objectives else [],
                "y": [y for _, y in front] if has_two_objectives else [],
            },
        },
        legend=legend({row["style"] for row in rows}, search),
        is_filled=True,
        note=" ".join(
            filter(
                None,
                (
                    _direction_note(first_objective),
                    _direction_note(second_objective),
                    x_axis.note(first_objective.name),
                    y_axis.note(second_objective.name),
                ),
            )
        ),
    )


def _direction_note(objective: Objective) -> str:
    return f"For {objective.name}, {'higher' if objective.higher_is_better else 'lower'} is better."


def _spec(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    number_format = {"format": ".6~g"}
    return {
        "width": "container",
        "height": 300,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "data": {"name": "front"},
                "mark": {"type": "line", "color": MARKS["best"].line.color, "strokeDash": [4, 3]},
            },
            {
                "data": {"name": "points"}, "mark": {"type": "point", "filled": True},
                "encoding": {
                    **style_encoding(MARKS),
                    "tooltip": [
                        {"field": "trial", "title": "trial"}, {"field": "x", "title": x["title"], **number_format},
                        {"field": "y", "title": y["title"], **number_format},
                    ],
                },
            },
        ],
    }  # fmt: skip

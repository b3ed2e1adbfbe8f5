"""Two objectives against each other, with the trials that none beats in all objectives."""

from __future__ import annotations

from typing import Any

from stormproof_train.report.kit.axis import value_axis
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.json_numbers import rounded
from stormproof_train.report.kit.marks import in_layers, look_encoding
from stormproof_train.search.objectives import Objective
from stormproof_train.search.report.looks import LOOKS, legend, look_of
from stormproof_train.search.report.trials import Search, value_text


def front_charts(search: Search) -> list[Chart]:
    """Draws each further objective over the first; nothing of a pair that no complete trial has.

    Args:
        search: with at least two objectives.
    """
    charts = [_pair(search, place) for place in range(1, len(search.objectives))]
    return [chart for chart in charts if chart is not None]


def front_table(search: Search) -> Table:
    """The trials on the Pareto front with all their objectives, the best of the first on top."""
    trials = [trial for trial in search.in_order(0) if trial.number in search.chosen]
    head = ("trial", *(objective.name for objective in search.objectives), "with")
    return Table(head, [(str(trial.number), *map(value_text, trial.values), trial.words) for trial in trials])


def _pair(search: Search, place: int) -> Chart | None:
    first, other = search.objectives[0], search.objectives[place]
    rows: list[dict[str, Any]] = []
    for trial in search.in_order(0):
        x, y = trial.values[0], trial.values[place]
        if x is not None and y is not None:
            x, y = rounded([x, y])
            rows.append({"x": x, "y": y, "look": look_of(trial, search), "trial": trial.number})
    if not rows:
        return None
    x_axis = value_axis([row["x"] for row in rows], higher_is_better=first.higher_is_better)
    y_axis = value_axis([row["y"] for row in rows], higher_is_better=other.higher_is_better)
    front = sorted((row["x"], row["y"]) for row in rows if row["look"] == "best")
    is_joined = len(search.objectives) == 2
    return Chart(
        title=f"{other.name} over {first.name}",
        text=(
            f"{other.name} over {first.name} of {len(rows):,} complete trials, {len(front):,} of which are on the "
            f"Pareto front: {'; '.join(f'{value_text(x)} and {value_text(y)}' for x, y in front)}."
        ),
        spec=_spec(x_axis.encoding("x", first.name), y_axis.encoding("y", other.name)),
        data={
            "points": in_layers(rows, ("x", "y", "look", "trial"), LOOKS),
            "front": {"x": [x for x, _ in front] if is_joined else [], "y": [y for _, y in front] if is_joined else []},
        },
        legend=legend({row["look"] for row in rows}, search),
        is_filled=True,
        note=" ".join(filter(None, (_better(first), _better(other), x_axis.note(first.name), y_axis.note(other.name)))),
    )


def _better(objective: Objective) -> str:
    return f"{objective.name} is better {'higher' if objective.higher_is_better else 'lower'}."


def _spec(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    number = {"format": ".6~g"}
    return {
        "width": "container",
        "height": 300,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "data": {"name": "front"},
                "mark": {"type": "line", "color": LOOKS["best"].line.colour, "strokeDash": [4, 3]},
            },
            {
                "data": {"name": "points"}, "mark": {"type": "point", "filled": True},
                "encoding": {
                    **look_encoding(LOOKS),
                    "tooltip": [
                        {"field": "trial", "title": "trial"}, {"field": "x", "title": x["title"], **number},
                        {"field": "y", "title": y["title"], **number},
                    ],
                },
            },
        ],
    }  # fmt: skip

"""What was reached with the steps spent so far."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.report.kit.axis import Axis, value_axis
from stormproof_train.report.kit.chart import STEPS, Chart, Line, Table
from stormproof_train.report.kit.json_numbers import finite, rounded
from stormproof_train.report.kit.marks import in_layers, look_encoding
from stormproof_train.search.report.looks import LOOKS, legend, look_of
from stormproof_train.search.report.trials import Search, Trial, value_text

BEST, RANDOM = Line("best so far", 1), Line("to be expected of random search", 7)
MOST_WORDS = 160
"""Letters of a trial's parameters that its tooltip shows."""
_FIELDS = ("spent", "value", "look", "trial", "state", "words")


def history_chart(search: Search, place: int, random: Mapping[str, Any] | None) -> Chart:
    """Draws the value of each trial over the steps spent until it ended.

    Args:
        search: with at least one trial.
        place: of the objective.
        random: what random search would be expected to reach in this objective, or None.
    """
    objective = search.objectives[place]
    spent = list(itertools.accumulate(trial.steps for trial in search.trials))
    expected = finite(random["expected"]) if random else None
    values = [value for trial in search.trials if (value := trial.value(place)) is not None]
    levels = values if expected is None else [*values, expected]
    axis = value_axis(levels, higher_is_better=objective.higher_is_better)
    points = [_point(trial, steps, search, place) for trial, steps in zip(search.trials, spent, strict=True)]
    bests = _improvements(search, place, spent)
    lasting = [*bests, (spent[-1], *bests[-1][1:])] if bests else []
    valueless = [point for point in points if point["value"] is None]
    at_the_bottom = "Trials without a value stand at the bottom." if valueless else ""
    return Chart(
        title=f"{objective.name} over the steps spent",
        text=_in_words(objective.name, search, bests, expected),
        spec=_spec(objective.name, axis, spent[-1]),
        data={
            "points": in_layers([point for point in points if point["value"] is not None], _FIELDS, LOOKS),
            "valueless": in_layers(valueless, _FIELDS, LOOKS),
            "best so far": {
                "spent": [steps for steps, *_ in lasting], "value": rounded([value for *_, value in lasting]),
            },
            "random": {"level": [] if expected is None else rounded([expected])},
        },
        legend=[
            *legend({point["look"] for point in points}, search), *([BEST] if bests else []),
            *([RANDOM] if expected is not None else []),
        ],
        is_filled=True,
        note=" ".join(filter(None, (at_the_bottom, axis.note(objective.name)))),
        table=Table(
            ("trial", f"best {objective.name} so far", "steps spent"),
            [(str(number), value_text(value), f"{steps:,}") for steps, number, value in bests],
        ),
    )  # fmt: skip


def _point(trial: Trial, spent: int, search: Search, place: int) -> dict[str, Any]:
    value = trial.value(place)
    words = trial.words
    return {
        "spent": spent,
        "value": None if value is None else rounded([value])[0],
        "look": look_of(trial, search) if value is not None or trial.state != "complete" else "failed",
        "trial": trial.number,
        "state": trial.state,
        "words": words if len(words) <= MOST_WORDS else f"{words[:MOST_WORDS]} …",
    }


def _improvements(search: Search, place: int, spent: Sequence[int]) -> list[tuple[int, int, float]]:
    """Steps spent, number and value of each trial that was the best when it ended."""
    objective = search.objectives[place]
    found: list[tuple[int, int, float]] = []
    for trial, steps in zip(search.trials, spent, strict=True):
        value = trial.values[place]
        if value is None or not trial.is_complete or not trial.feasible:
            continue
        if not found or objective.as_loss(value) < objective.as_loss(found[-1][2]):
            found.append((steps, trial.number, value))
    return found


def _in_words(name: str, search: Search, bests: Sequence[tuple[int, int, float]], expected: float | None) -> str:
    told = f"{name} of {len(search.trials):,} trials over the steps spent until each ended."
    if bests:
        steps, number, value = bests[-1]
        told += f" The best was {value_text(bests[0][2])} at first, and {value_text(value)} in the end, from trial "
        told += f"{number} on, after {steps:,} steps."
    return told if expected is None else f"{told} Of random search {value_text(expected)} is to be expected."


def _spec(name: str, axis: Axis, last: int) -> dict[str, Any]:
    told = [
        {"field": "trial", "title": "trial"}, {"field": "state", "title": "state"},
        {"field": "value", "title": "value", "format": ".6~g"},
        {"field": "spent", "title": "steps spent", "format": ",d"}, {"field": "words", "title": "with"},
    ]  # fmt: skip
    value = axis.encoding("value", name)
    point = {"type": "point", "filled": True}
    steps = {**STEPS, "title": "steps spent", "scale": {"domain": [0, max(1, last)], "nice": False}}
    return {
        "width": "container",
        "height": 280,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "random"},
                "mark": {"type": "rule", "color": RANDOM.colour, "strokeDash": [6, 4], "strokeWidth": 1.5},
                "encoding": {"y": {**value, "field": "level"}},
            },
            {
                "data": {"name": "best so far"},
                "mark": {"type": "line", "color": BEST.colour, "interpolate": "step-after"},
                "encoding": {"x": {"field": "spent", **steps}, "y": value},
            },
            {
                "data": {"name": "points"}, "mark": point,
                "encoding": {"x": {"field": "spent", **steps}, "y": value, **look_encoding(LOOKS), "tooltip": told},
            },
            {
                "data": {"name": "valueless"}, "mark": point,
                "encoding": {
                    "x": {"field": "spent", **steps}, "y": {"value": 274}, **look_encoding(LOOKS), "tooltip": told,
                },
            },
        ],
    }  # fmt: skip

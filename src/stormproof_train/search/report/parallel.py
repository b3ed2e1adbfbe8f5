"""Every complete trial as a line through all its parameters, to its value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.report.kit.axis import Axis, parameter_axis, tick_text, value_axis
from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.search.report.trials import Parameter, Search, Trial, value_text

ROW_HEIGHT = 52
NOWHERE = -0.1
"""Where a line passes the axis of a parameter that has no part in its trial."""
MOST_IN_TABLE = 10
MOST_TICKS = 8
"""Of more choices each second, third … is named: there is no room for all."""


@dataclass(frozen=True)
class _Rank:
    label: str
    series: int
    width: float
    opacity: float

    @property
    def line(self) -> Line:
        return Line(self.label, self.series)


RANKS = {
    "outside": _Rank("breaks a constraint", 4, 1, 0.4),
    "half": _Rank("the other half", 6, 1, 0.3),
    "better": _Rank("the better half", 0, 1.25, 0.6),
    "tenth": _Rank("the best tenth", 1, 2, 0.95),
}
"""By name how a line looks, in the order in which they are drawn."""


@dataclass(frozen=True)
class _Row:
    """One of the axes, which lie below each other: texts at their positions, and where a trial passes it."""

    title: str
    ticks: Sequence[tuple[float, str]]
    position: Callable[[Trial], float]


def parallel_chart(search: Search, place: int) -> Chart | None:
    """Draws a line for each complete trial that has a value of the objective; None where there are fewer than two.

    The axes lie below each other, so that there may be many of them and their texts have room on a narrow screen.

    Args:
        search: whose trials they are.
        place: of the objective, whose axis is the last, with the best at its right end.
    """
    trials, objective = search.in_order(place), search.objectives[place]
    if len(trials) < 2:
        return None
    axes = [*(_parameter(parameter, trials) for parameter in search.space), _value(search, place, trials)]
    ranks = _ranks(trials)
    lines: dict[str, list[Any]] = {"trial": [], "axis": [], "position": [], "rank": []}
    for rank in RANKS:
        for trial in reversed([trial for trial in trials if ranks[trial.number] == rank]):
            lines["trial"] += [trial.number] * len(axes)
            lines["axis"] += range(len(axes))
            lines["position"] += [round(axis.position(trial), 4) for axis in axes]
            lines["rank"] += [rank] * len(axes)
    has_gaps = min(lines["position"]) < 0
    ticks = [(number, at, text) for number, axis in enumerate(axes) for at, text in axis.ticks]
    best = trials[0]
    return Chart(
        title=f"All parameters, and {objective.name}",
        text=(
            f"{len(trials):,} complete trials as lines through their parameters to {objective.name}. The best is trial "
            f"{best.number} ({value_text(best.values[place])}): {best.words}."
        ),
        spec=_spec(len(axes), NOWHERE if has_gaps else 0),
        data={
            "lines": lines,
            "axes": {"axis": list(range(len(axes))), "title": [axis.title for axis in axes]},
            "ticks": {
                "axis": [number for number, _, _ in ticks], "position": [round(at, 4) for _, at, _ in ticks],
                "text": [text for _, _, text in ticks], "room": [1 / len(axes[number].ticks) for number, _, _ in ticks],
            },
        },
        legend=[rank.line for name, rank in reversed(RANKS.items()) if name in ranks.values()],
        is_filled=True,
        note="At the left end of an axis pass those trials in which the parameter has no part." if has_gaps else "",
        table=_table(trials[:MOST_IN_TABLE], search, place),
    )  # fmt: skip


def _ranks(trials: Sequence[Trial]) -> dict[int, str]:
    """By number of a trial the name of its rank; the best is the first of ``trials``."""
    feasible = [trial for trial in trials if trial.feasible]
    tenth, half = math.ceil(len(feasible) / 10), math.ceil(len(feasible) / 2)
    ranks = {trial.number: "outside" for trial in trials}
    for place, trial in enumerate(feasible):
        ranks[trial.number] = "tenth" if place < tenth else "better" if place < half else "half"
    return ranks


def _parameter(parameter: Parameter, trials: Sequence[Trial]) -> _Row:
    if parameter.choices is None:
        numbers = {trial.number: number for trial in trials if (number := parameter.number(trial)) is not None}
        axis = parameter_axis([*numbers.values()], parameter.low, parameter.high, is_log=parameter.is_log)
        positions = {number: axis.position(value) for number, value in numbers.items()}
        ticks = _ends(axis)
    else:
        texts = {trial.number: text for trial in trials if (text := parameter.text(trial)) is not None}
        choices = list(dict.fromkeys([*parameter.choices, *texts.values()]))
        at = {choice: place / (len(choices) - 1) if len(choices) > 1 else 0.5 for place, choice in enumerate(choices)}
        positions = {number: at[text] for number, text in texts.items()}
        ticks = [(position, choice) for choice, position in at.items()][:: math.ceil(len(at) / MOST_TICKS)]
    return _Row(parameter.key, ticks, lambda trial: positions.get(trial.number, NOWHERE))


def _value(search: Search, place: int, trials: Sequence[Trial]) -> _Row:
    objective = search.objectives[place]
    values = {trial.number: value for trial in trials if (value := trial.values[place]) is not None}
    axis = value_axis(values.values(), higher_is_better=objective.higher_is_better)

    def turned(position: float) -> float:
        return position if objective.higher_is_better else 1 - position

    ticks = [(turned(position), text) for position, text in _ends(axis)]
    return _Row(objective.name, ticks, lambda trial: turned(axis.position(values[trial.number])))


def _ends(axis: Axis) -> list[tuple[float, str]]:
    if axis.low == axis.high:
        return [(0.5, tick_text(axis.low))]
    return [(position, tick_text(axis.at(position))) for position in (0, 0.5, 1)]


def _table(trials: Sequence[Trial], search: Search, place: int) -> Table:
    head = ("trial", *(parameter.key for parameter in search.space), search.objectives[place].name)
    return Table(
        head,
        [
            (
                str(trial.number), *(parameter.text(trial) or "" for parameter in search.space),
                value_text(trial.values[place]),
            )
            for trial in trials
        ],
    )  # fmt: skip


def _spec(axes: int, leftmost: float) -> dict[str, Any]:
    across = {
        "field": "position", "type": "quantitative", "axis": None,
        "scale": {"domain": [leftmost, 1], "nice": False, "zero": False},
    }  # fmt: skip
    down = {
        "field": "axis", "type": "ordinal", "axis": None, "sort": None, "scale": {"domain": list(range(axes))},
    }  # fmt: skip
    left = {name: value for name, value in across.items() if name != "field"} | {"datum": leftmost}
    return {
        "width": "container",
        "height": axes * ROW_HEIGHT,  # with a step, Vega warns of fit-x
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "axes"}, "mark": {"type": "rule", "color": "var(--rule)", "strokeWidth": 1.5},
                "encoding": {"y": down, "x": left, "x2": {"datum": 1}},
            },
            {
                "data": {"name": "lines"}, "mark": {"type": "line", "strokeJoin": "round"},
                "encoding": {
                    "x": across, "y": down, "order": {"field": "axis"}, "detail": {"field": "trial"}, **_ranked(),
                    "tooltip": [{"field": "trial", "title": "trial"}],
                },
            },
            *_texts("axes", _ABOVE, {"x": left, "y": down}, "title"),
            *_texts("ticks", _BELOW, {"x": across, "y": down}, "text"),
        ],
    }  # fmt: skip


_ABOVE = {"align": "left", "dy": -10, "fontWeight": 600, "limit": {"expr": "width"}}
_BELOW = {
    "align": {"expr": "datum.position < 0.01 ? 'left' : datum.position > 0.99 ? 'right' : 'center'"},
    "dy": 11, "limit": {"expr": "datum.room * width * 0.95"},
}  # fmt: skip


def _ranked() -> dict[str, Any]:
    def by_rank(values: list[Any]) -> dict[str, Any]:
        scale = {"type": "ordinal", "domain": [*RANKS], "range": values}
        return {"field": "rank", "type": "ordinal", "legend": None, "scale": scale}

    return {
        "color": by_rank([rank.line.colour for rank in RANKS.values()]),
        "opacity": by_rank([rank.opacity for rank in RANKS.values()]),
        "strokeWidth": by_rank([rank.width for rank in RANKS.values()]),
    }


def _texts(data: str, mark: dict[str, Any], encoding: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Texts that can be read over lines: each has an edge of the colour of the paper below it."""
    place = {**encoding, "text": {"field": field}}
    edge = {"stroke": "var(--paper)", "strokeWidth": 4, "strokeJoin": "round", "color": "var(--paper)"}
    return [
        {"data": {"name": data}, "mark": {"type": "text", "fontSize": 11, **mark, **look}, "encoding": place}
        for look in (edge, {"color": "var(--ink)"})
    ]

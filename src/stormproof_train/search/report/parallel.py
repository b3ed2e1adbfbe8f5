"""Draws each complete trial as a line through its parameters to its objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.report.kit.axis import Axis, format_tick, parameter_axis, value_axis
from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.search.report.search_info import ParameterInfo, SearchInfo, TrialInfo, format_objective

MAX_ROW_HEIGHT = 52
ABSENT_POSITION = -0.1
"""Position of a line on the axis of a parameter that does not exist in its trial."""
MAX_TABLE_ROWS = 10
MAX_TICKS = 8
"""Maximum number of labels on the axis of a choice. Above it, only every n-th choice is labeled."""


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
    "outside": _Rank("violates a constraint", 4, 1, 0.4),
    "half": _Rank("other half", 6, 1, 0.3),
    "better": _Rank("better half", 0, 1.25, 0.6),
    "tenth": _Rank("best tenth", 1, 2, 0.95),
}
"""Line styles by name, in drawing order."""


@dataclass(frozen=True)
class _ParallelAxis:
    """An axis, with labels at their positions, and a function that returns the position of a trial."""

    title: str
    ticks: Sequence[tuple[float, str]]
    position: Callable[[TrialInfo], float]


def parallel_chart(search: SearchInfo, objective_index: int) -> Chart | None:
    """Draws a line for each complete trial with a value of the objective. Returns None for fewer than two.

    The axes are stacked vertically, so that many axes and their labels fit on a narrow screen.

    Args:
        search: Search with the trials.
        objective_index: Index of the objective. Its axis is the last one, with the best value on the right.
    """
    trials, objective = search.ranked_trials(objective_index), search.objectives[objective_index]
    if len(trials) < 2:
        return None
    axes = [
        *(_parameter_axis(parameter, trials) for parameter in search.space),
        _objective_axis(search, objective_index, trials),
    ]
    ranks = _rank_trials(trials)
    lines: dict[str, list[Any]] = {"trial": [], "axis": [], "position": [], "rank": []}
    for rank in RANKS:
        for trial in reversed([trial for trial in trials if ranks[trial.number] == rank]):
            lines["trial"] += [trial.number] * len(axes)
            lines["axis"] += range(len(axes))
            lines["position"] += [round(axis.position(trial), 4) for axis in axes]
            lines["rank"] += [rank] * len(axes)
    has_gaps = min(lines["position"]) < 0
    ticks = [(axis_index, position, text) for axis_index, axis in enumerate(axes) for position, text in axis.ticks]
    best_trial = trials[0]
    return Chart(
        title=f"All parameters and {objective.name}",
        text=(
            f"{len(trials):,} complete trials as lines through their parameters to {objective.name}. The best is trial "
            f"{best_trial.number} ({format_objective(best_trial.values[objective_index])}): {best_trial.overrides}."
        ),
        spec=_spec(len(axes), ABSENT_POSITION if has_gaps else 0),
        data={
            "lines": lines,
            "axes": {"axis": list(range(len(axes))), "title": [axis.title for axis in axes]},
            "ticks": {
                "axis": [axis_index for axis_index, _, _ in ticks],
                "position": [round(position, 4) for _, position, _ in ticks],
                "text": [text for _, _, text in ticks],
                "room": [1 / len(axes[axis_index].ticks) for axis_index, _, _ in ticks],
            },
        },
        legend=[rank.line for name, rank in reversed(RANKS.items()) if name in ranks.values()],
        is_filled=True,
        note="Lines at the left end of an axis are trials without that parameter." if has_gaps else "",
        table=_best_trials_table(trials[:MAX_TABLE_ROWS], search, objective_index),
    )  # fmt: skip


def _rank_trials(trials: Sequence[TrialInfo]) -> dict[int, str]:
    """Returns the name of each trial's rank by its number. The first of ``trials`` is the best."""
    feasible_trials = [trial for trial in trials if trial.is_feasible]
    tenth_size, half_size = math.ceil(len(feasible_trials) / 10), math.ceil(len(feasible_trials) / 2)
    ranks = {trial.number: "outside" for trial in trials}
    for index, trial in enumerate(feasible_trials):
        ranks[trial.number] = "tenth" if index < tenth_size else "better" if index < half_size else "half"
    return ranks


def _parameter_axis(parameter: ParameterInfo, trials: Sequence[TrialInfo]) -> _ParallelAxis:
    if parameter.choices is None:
        numbers = {trial.number: number for trial in trials if (number := parameter.numeric_value(trial)) is not None}
        axis = parameter_axis([*numbers.values()], parameter.low, parameter.high, is_log=parameter.is_log)
        positions = {number: axis.position(value) for number, value in numbers.items()}
        ticks = _end_ticks(axis)
    else:
        texts = {trial.number: text for trial in trials if (text := parameter.text_value(trial)) is not None}
        choices = list(dict.fromkeys([*parameter.choices, *texts.values()]))
        choice_positions = {
            choice: index / (len(choices) - 1) if len(choices) > 1 else 0.5 for index, choice in enumerate(choices)
        }
        positions = {number: choice_positions[text] for number, text in texts.items()}
        ticks = [(position, choice) for choice, position in choice_positions.items()][
            :: math.ceil(len(choice_positions) / MAX_TICKS)
        ]
    return _ParallelAxis(parameter.key, ticks, lambda trial: positions.get(trial.number, ABSENT_POSITION))


def _objective_axis(search: SearchInfo, objective_index: int, trials: Sequence[TrialInfo]) -> _ParallelAxis:
    objective = search.objectives[objective_index]
    values = {trial.number: value for trial in trials if (value := trial.values[objective_index]) is not None}
    axis = value_axis(values.values(), higher_is_better=objective.higher_is_better)

    def orient(position: float) -> float:
        return position if objective.higher_is_better else 1 - position

    ticks = [(orient(position), text) for position, text in _end_ticks(axis)]
    return _ParallelAxis(objective.name, ticks, lambda trial: orient(axis.position(values[trial.number])))


def _end_ticks(axis: Axis) -> list[tuple[float, str]]:
    if axis.low == axis.high:
        return [(0.5, format_tick(axis.low))]
    return [(position, format_tick(axis.value_at(position))) for position in (0, 0.5, 1)]


def _best_trials_table(trials: Sequence[TrialInfo], search: SearchInfo, objective_index: int) -> Table:
    head = ("trial", *(parameter.key for parameter in search.space), search.objectives[objective_index].name)
    return Table(
        head,
        [
            (
                str(trial.number), *(parameter.text_value(trial) or "" for parameter in search.space),
                format_objective(trial.values[objective_index]),
            )
            for trial in trials
        ],
    )  # fmt: skip


def _spec(num_axes: int, leftmost: float) -> dict[str, Any]:
    x_encoding = {
        "field": "position", "type": "quantitative", "axis": None,
        "scale": {"domain": [leftmost, 1], "nice": False, "zero": False},
    }  # fmt: skip
    y_encoding = {
        "field": "axis", "type": "ordinal", "axis": None, "sort": None, "scale": {"domain": list(range(num_axes))},
    }  # fmt: skip
    left_encoding = {name: value for name, value in x_encoding.items() if name != "field"} | {"datum": leftmost}
    return {
        "width": "container",
        "height": num_axes * MAX_ROW_HEIGHT,  # with a step size, Vega warns about fit-x
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "axes"}, "mark": {"type": "rule", "color": "var(--rule)", "strokeWidth": 1.5},
                "encoding": {"y": y_encoding, "x": left_encoding, "x2": {"datum": 1}},
            },
            {
                "data": {"name": "lines"}, "mark": {"type": "line", "strokeJoin": "round"},
                "encoding": {
                    "x": x_encoding, "y": y_encoding, "order": {"field": "axis"}, "detail": {"field": "trial"},
                    **_rank_encoding(),
                    "tooltip": [{"field": "trial", "title": "trial"}],
                },
            },
            *_text_layers("axes", _TITLE_MARK, {"x": left_encoding, "y": y_encoding}, "title"),
            *_text_layers("ticks", _TICK_MARK, {"x": x_encoding, "y": y_encoding}, "text"),
        ],
    }  # fmt: skip


_TITLE_MARK = {"align": "left", "dy": -10, "fontWeight": 600, "limit": {"expr": "width"}}
_TICK_MARK = {
    "align": {"expr": "datum.position < 0.01 ? 'left' : datum.position > 0.99 ? 'right' : 'center'"},
    "dy": 11, "limit": {"expr": "datum.room * width * 0.95"},
}  # fmt: skip


def _rank_encoding() -> dict[str, Any]:
    def encode_by_rank(values: list[Any]) -> dict[str, Any]:
        scale = {"type": "ordinal", "domain": [*RANKS], "range": values}
        return {"field": "rank", "type": "ordinal", "legend": None, "scale": scale}

    return {
        "color": encode_by_rank([rank.line.color for rank in RANKS.values()]),
        "opacity": encode_by_rank([rank.opacity for rank in RANKS.values()]),
        "strokeWidth": encode_by_rank([rank.width for rank in RANKS.values()]),
    }


def _text_layers(data: str, mark: dict[str, Any], encoding: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Returns layers with text that is readable over lines, because it has an outline in the background color."""
    text_encoding = {**encoding, "text": {"field": field}}
    outline = {"stroke": "var(--paper)", "strokeWidth": 4, "strokeJoin": "round", "color": "var(--paper)"}
    return [
        {"data": {"name": data}, "mark": {"type": "text", "fontSize": 11, **mark, **style}, "encoding": text_encoding}
        for style in (outline, {"color": "var(--ink)"})
    ]

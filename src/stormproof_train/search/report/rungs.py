"""Draws the progress of each trial and counts promotions at the rungs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stormproof_train.report.kit.axis import Axis, value_axis
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.json_numbers import round_for_json
from stormproof_train.report.kit.marks import layered_columns, style_encoding
from stormproof_train.report.kit.thinning import thin_indices
from stormproof_train.search.report.marks import MARKS, legend, mark_of
from stormproof_train.search.report.search_info import SearchInfo, TrialInfo, format_objective

MAX_BUCKETS = 5000
"""Maximum number of buckets of all curves together, with four points each, to limit the size of the page."""
RUNG_TOLERANCE = 1e-6
"""Tolerance for fractions of a run's length. A fraction that is at most this much below a rung has reached it."""
EARLY_RUNG = 0.2
"""If the first rung is below this fraction, the axis is logarithmic, because most curves end early."""


def curves_chart(search: SearchInfo) -> Chart | None:
    """Draws the first objective of all trials over the fraction of their length. None without any validation."""
    validated_trials = [trial for trial in search.trials if _finite_curve(trial)]
    if not validated_trials:
        return None
    name = search.objectives[0].name
    values = [value for trial in validated_trials for _, value in _finite_curve(trial)]
    axis = value_axis(values, higher_is_better=search.objectives[0].higher_is_better)
    x_encoding = _fraction_encoding(search, validated_trials)
    end_points = [
        {"fraction": round(fraction, 5), "value": round_for_json([value])[0], **_mark_fields(trial, search)}
        for trial in validated_trials
        for fraction, value in _finite_curve(trial)[-1:]
    ]
    return Chart(
        title=f"{name} of all trials over the fraction of their length",
        text=f"{name} of {len(validated_trials):,} trials over the fraction of their "
        f"length{_describe_rungs(search.rungs)}.",
        spec=_spec(name, axis, x_encoding),
        data={
            "curves": layered_columns(
                _curve_points(validated_trials, search), ("fraction", "value", "style", "trial"), MARKS
            ),
            "ends": layered_columns(end_points, ("fraction", "value", "style", "trial", "state"), MARKS),
            "rungs": {"at": [rung for rung in search.rungs if x_encoding["scale"]["domain"][0] <= rung]},
        },
        legend=legend({end_point["style"] for end_point in end_points}, search),
        is_filled=True,
        note=axis.note(name),
        table=_last_values_table(validated_trials, name),
    )


def rung_table(search: SearchInfo) -> Table:
    """Counts, for each rung, the trials that reached it, were promoted, stopped or failed there, or are undecided."""
    objective = search.objectives[0]
    best_of = max if objective.higher_is_better else min
    rows = []
    for rung in search.rungs:
        trial_values = [(trial, _values_from_rung(trial, rung)) for trial in search.trials]
        arrivals = [(trial, values) for trial, values in trial_values if values]
        stop_counts = Counter(trial.state for trial, values in arrivals if len(values) == 1 and not trial.is_complete)
        num_undecided = stop_counts["running"] + stop_counts["paused"]
        counts = (
            len(arrivals),
            len(arrivals) - stop_counts.total(),
            stop_counts["pruned"],
            stop_counts["failed"],
            num_undecided,
        )
        rung_values = [value for _, (value, *_) in arrivals if value is not None]
        rows.append(
            (f"{rung:.1%}", *(f"{count:,}" for count in counts), format_objective(best_of(rung_values, default=None)))
        )
    head = ("rung", "reached", "promoted", "stopped", "failed", "undecided", f"best {objective.name}")
    return Table(head, rows)


def _finite_curve(trial: TrialInfo) -> list[tuple[float, float]]:
    return [(fraction, value) for fraction, _, value in trial.curve if value is not None]


def _values_from_rung(trial: TrialInfo, rung: float) -> list[float | None]:
    """Returns the values of a trial at its validations from a rung on."""
    return [value for fraction, _, value in trial.curve if fraction >= rung - RUNG_TOLERANCE]


def _mark_fields(trial: TrialInfo, search: SearchInfo) -> dict[str, Any]:
    return {"style": mark_of(trial, search), "trial": trial.number, "state": trial.state}


def _curve_points(trials: Sequence[TrialInfo], search: SearchInfo) -> list[dict[str, Any]]:
    buckets = max(1, MAX_BUCKETS // len(trials))
    points = []
    for trial in trials:
        values = np.array([np.nan if value is None else value for _, _, value in trial.curve], dtype=np.float64)
        indices = thin_indices(values, buckets)
        points += [
            {"fraction": round(trial.curve[index][0], 5), "value": value, **_mark_fields(trial, search)}
            for index, value in zip(indices.tolist(), round_for_json(values[indices].tolist()), strict=True)
        ]
    return points


def _fraction_encoding(search: SearchInfo, trials: Sequence[TrialInfo]) -> dict[str, Any]:
    """Returns the encoding of the fractions. The rungs, if any, are its ticks."""
    first_fraction = min(fraction for trial in trials for fraction, _ in _finite_curve(trial))
    is_log = bool(search.rungs) and search.rungs[0] < EARLY_RUNG and first_fraction > 0
    scale = {"domain": [min(first_fraction, *search.rungs) if is_log else 0, 1], "nice": False, "clamp": True}
    ticks = {"values": [*search.rungs, 1]} if search.rungs else {"tickCount": 5}
    return {
        "field": "fraction", "type": "quantitative", "title": f"fraction of a run's length{' (logarithmic)' * is_log}",
        "scale": {"type": "log" if is_log else "linear", **scale}, "axis": {"format": ".2~p", "grid": False, **ticks},
    }  # fmt: skip


def _describe_rungs(rungs: Sequence[float]) -> str:
    return f", with rungs at {', '.join(f'{rung:.1%}' for rung in rungs)}" if rungs else ""


def _last_values_table(trials: Sequence[TrialInfo], name: str) -> Table:
    rows = [
        (
            str(trial.number), trial.state, f"{len(trial.curve):,}", f"{trial.curve[-1][0]:.1%}",
            f"{trial.curve[-1][1]:,}", format_objective(trial.curve[-1][2]) or "not finite",
        )
        for trial in sorted(trials, key=lambda trial: trial.number)
    ]  # fmt: skip
    return Table(("trial", "state", "validations", "fraction", "step", f"last {name}"), rows)


def _spec(name: str, axis: Axis, x_encoding: dict[str, Any]) -> dict[str, Any]:
    position_encoding = {"x": x_encoding, "y": axis.encoding("value", name)}
    tooltip = [
        {"field": "trial", "title": "trial"}, {"field": "state", "title": "state"},
        {"field": "value", "title": "last value", "format": ".6~g"},
        {"field": "fraction", "title": "at", "format": ".1%"},
    ]  # fmt: skip
    mark_encoding = style_encoding(MARKS)
    width_scale = {"type": "ordinal", "domain": list(MARKS), "range": [2.5 if name == "best" else 1 for name in MARKS]}
    return {
        "width": "container",
        "height": 320,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "rungs"}, "mark": {"type": "rule", "color": "var(--mark)", "strokeDash": [3, 3]},
                "encoding": {"x": {**x_encoding, "field": "at"}},
            },
            {
                "data": {"name": "curves"}, "mark": {"type": "line", "clip": True},
                "encoding": {
                    **position_encoding, "detail": {"field": "trial"}, "color": mark_encoding["color"],
                    "opacity": mark_encoding["opacity"],
                    "strokeWidth": {"field": "style", "type": "ordinal", "legend": None, "scale": width_scale},
                    "tooltip": tooltip[:1],
                },
            },
            {
                "data": {"name": "ends"}, "mark": {"type": "point", "filled": True},
                "encoding": {**position_encoding, **mark_encoding, "tooltip": tooltip},
            },
        ],
    }  # fmt: skip

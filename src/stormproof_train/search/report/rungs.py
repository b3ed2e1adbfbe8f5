"""How far each trial came, and which of them the rungs let go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stormproof_train.report.kit.axis import Axis, value_axis
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.json_numbers import rounded
from stormproof_train.report.kit.marks import in_layers, look_encoding
from stormproof_train.report.kit.thinning import thinned
from stormproof_train.search.report.looks import LOOKS, legend, look_of
from stormproof_train.search.report.trials import Search, Trial, value_text

ALL_BUCKETS = 5000
"""Into so many all curves together are put, four points of each, so that the page stays small."""
CLOSE = 1e-6
"""A fraction of a run's length that is no more than this below a rung has reached it."""
EARLY = 0.2
"""Where the first rung lies below, most curves end near the beginning: the fractions' logarithms are drawn."""


def curves_chart(search: Search) -> Chart | None:
    """Draws the first objective of all trials over the fraction of their length; None where nobody was validated.

    Args:
        search: whose trials they are; a repetition, which was not trained, is not drawn.
    """
    trained = [trial for trial in search.trials if _valued(trial)]
    if not trained:
        return None
    name = search.objectives[0].name
    values = [value for trial in trained for _, value in _valued(trial)]
    axis = value_axis(values, higher_is_better=search.objectives[0].higher_is_better)
    across = _fractions(search, trained)
    ends = [
        {"fraction": round(fraction, 5), "value": rounded([value])[0], **_of(trial, search)}
        for trial in trained
        for fraction, value in _valued(trial)[-1:]
    ]
    return Chart(
        title=f"{name} of all trials over the fraction of their length",
        text=f"{name} of {len(trained):,} trials over the fraction of their length{_at_rungs(search.rungs)}.",
        spec=_spec(name, axis, across),
        data={
            "curves": in_layers(_points(trained, search), ("fraction", "value", "look", "trial"), LOOKS),
            "ends": in_layers(ends, ("fraction", "value", "look", "trial", "state"), LOOKS),
            "rungs": {"at": [rung for rung in search.rungs if across["scale"]["domain"][0] <= rung]},
        },
        legend=legend({end["look"] for end in ends}, search),
        is_filled=True,
        note=axis.note(name),
        table=_ends_table(trained, name),
    )


def rung_table(search: Search) -> Table:
    """For each rung how many trials reached it, went on, were stopped or failed there, or are not decided yet."""
    objective = search.objectives[0]
    best = max if objective.higher_is_better else min
    rows = []
    for rung in search.rungs:
        from_there = [(trial, _from(trial, rung)) for trial in search.trials]
        reached = [(trial, values) for trial, values in from_there if values]
        stayed = Counter(trial.state for trial, values in reached if len(values) == 1 and not trial.is_complete)
        undecided = stayed["running"] + stayed["paused"]
        counts = (len(reached), len(reached) - stayed.total(), stayed["pruned"], stayed["failed"], undecided)
        there = [value for _, (value, *_) in reached if value is not None]
        rows.append((f"{rung:.1%}", *(f"{count:,}" for count in counts), value_text(best(there, default=None))))
    head = ("rung", "reached", "went on", "stopped", "failed", "not decided", f"best {objective.name} there")
    return Table(head, rows)


def _valued(trial: Trial) -> list[tuple[float, float]]:
    return [(fraction, value) for fraction, _, value in trial.curve if value is not None]


def _from(trial: Trial, rung: float) -> list[float | None]:
    """What it had at its validations from a rung on."""
    return [value for fraction, _, value in trial.curve if fraction >= rung - CLOSE]


def _of(trial: Trial, search: Search) -> dict[str, Any]:
    return {"look": look_of(trial, search), "trial": trial.number, "state": trial.state}


def _points(trials: Sequence[Trial], search: Search) -> list[dict[str, Any]]:
    buckets = max(1, ALL_BUCKETS // len(trials))
    points = []
    for trial in trials:
        values = np.array([np.nan if value is None else value for _, _, value in trial.curve], dtype=np.float64)
        kept = thinned(values, buckets)
        points += [
            {"fraction": round(trial.curve[place][0], 5), "value": value, **_of(trial, search)}
            for place, value in zip(kept.tolist(), rounded(values[kept].tolist()), strict=True)
        ]
    return points


def _fractions(search: Search, trials: Sequence[Trial]) -> dict[str, Any]:
    """The encoding of the fractions, whose ticks are the rungs where there are some."""
    first = min(fraction for trial in trials for fraction, _ in _valued(trial))
    is_log = bool(search.rungs) and search.rungs[0] < EARLY and first > 0
    scale = {"domain": [min(first, *search.rungs) if is_log else 0, 1], "nice": False, "clamp": True}
    ticks = {"values": [*search.rungs, 1]} if search.rungs else {"tickCount": 5}
    return {
        "field": "fraction", "type": "quantitative", "title": f"fraction of a run's length{' (logarithmic)' * is_log}",
        "scale": {"type": "log" if is_log else "linear", **scale}, "axis": {"format": ".2~p", "grid": False, **ticks},
    }  # fmt: skip


def _at_rungs(rungs: Sequence[float]) -> str:
    return f", with rungs at {', '.join(f'{rung:.1%}' for rung in rungs)}" if rungs else ""


def _ends_table(trials: Sequence[Trial], name: str) -> Table:
    rows = [
        (
            str(trial.number), trial.state, f"{len(trial.curve):,}", f"{trial.curve[-1][0]:.1%}",
            f"{trial.curve[-1][1]:,}", value_text(trial.curve[-1][2]) or "not finite",
        )
        for trial in sorted(trials, key=lambda trial: trial.number)
    ]  # fmt: skip
    return Table(("trial", "state", "validations", "came to", "step", f"{name} there"), rows)


def _spec(name: str, axis: Axis, across: dict[str, Any]) -> dict[str, Any]:
    place = {"x": across, "y": axis.encoding("value", name)}
    told = [
        {"field": "trial", "title": "trial"}, {"field": "state", "title": "state"},
        {"field": "value", "title": "last value", "format": ".6~g"},
        {"field": "fraction", "title": "at", "format": ".1%"},
    ]  # fmt: skip
    looks = look_encoding(LOOKS)
    thin = {"type": "ordinal", "domain": list(LOOKS), "range": [2.5 if name == "best" else 1 for name in LOOKS]}
    return {
        "width": "container",
        "height": 320,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "rungs"}, "mark": {"type": "rule", "color": "var(--mark)", "strokeDash": [3, 3]},
                "encoding": {"x": {**across, "field": "at"}},
            },
            {
                "data": {"name": "curves"}, "mark": {"type": "line", "clip": True},
                "encoding": {
                    **place, "detail": {"field": "trial"}, "color": looks["color"], "opacity": looks["opacity"],
                    "strokeWidth": {"field": "look", "type": "ordinal", "legend": None, "scale": thin},
                    "tooltip": told[:1],
                },
            },
            {
                "data": {"name": "ends"}, "mark": {"type": "point", "filled": True},
                "encoding": {**place, **looks, "tooltip": told},
            },
        ],
    }  # fmt: skip

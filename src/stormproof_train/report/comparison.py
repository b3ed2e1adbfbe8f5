"""Several runs beside each other, as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from stormproof_train.config.identity import result_settings
from stormproof_train.evaluation.comparison import are_of_the_same_samples, compare
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.report.attempts import of_attempts
from stormproof_train.report.curves import are_curves, buckets_for, curve
from stormproof_train.report.run_files import RunFiles
from stormproof_train.report.verdict import last_step, verdict
from stormproof_train.run.findings_file import standing

MOST_COMPARED = 28
"""Maximum number of pairs of runs to compare: all pairs of 8 runs. A comparison takes up to two seconds."""
_Tested = tuple[str, Predictions, str]  # label, what the test has shown, headline metric
FEWEST_SEEDS = 3
"""Minimum number of runs for an interval over seeds. With two, the interval is 13 times as wide as their difference."""


def of_runs(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """All that a page says of several runs, as plain values.

    Args:
        runs: at least two, finished or not.

    Returns:
        ``last_step`` of all; ``settings``, those that differ and change the result, by dotted key a value for each run;
        ``runs``, of each ``label``, ``folder``, ``status``, ``verdict``, ``summary``, ``findings`` that stand,
        ``attempts`` and ``curves``; ``seeds``, of each group of runs that differ in their seed alone ``runs``, their
        labels, ``settings`` that distinguish the group from other runs, and what :func:`over_seeds` says; ``paired``,
        for each of the first ``MOST_COMPARED`` pairs of runs with the same test samples their labels (``runs``) and the
        result of :func:`stormproof_train.evaluation.comparison.compare` for the headline metric; ``pairs``, the number
        of all such pairs.
    """
    labels = _labels(runs)
    settings = differing([run.settings for run in runs])
    pairs = _pairs(runs, labels)
    curves = [[name for name in are_curves(run.logged) if name.startswith(("train/", "val/"))] for run in runs]
    buckets = buckets_for(sum(map(len, curves)))
    return {
        "last_step": max(map(last_step, runs)),
        "settings": settings,
        "runs": [
            {
                "label": label,
                "folder": str(run.path),
                "status": "gone" if run.is_gone else run.record["status"],
                "verdict": verdict(run),
                "summary": run.summary,
                "findings": [each.as_dict() for each in standing(run.findings)],
                "attempts": of_attempts(run.record, run.logged),
                "curves": {name: curve(run.logged[name], buckets) for name in names},
            }
            for run, label, names in zip(runs, labels, curves, strict=True)
        ],
        "seeds": [
            {
                "runs": [labels[place] for place in group],
                "settings": {key: column[group[0]] for key, column in settings.items() if key != "seed"},
                **over_seeds([runs[place] for place in group]),
            }
            for group in _but_for_the_seed(runs)
        ],
        "paired": [
            {"runs": [one, other], **compare(first, second, {name})}
            for (one, first, name), (other, second, _) in pairs[:MOST_COMPARED]
        ],
        "pairs": len(pairs),
    }


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that change the result and are not the same in all runs.

    Example:
        >>> differing([{"seed": 1, "model": {"width": 8}}, {"seed": 2, "model": {"width": 8}}])
        {'seed': [1, 2]}
    """
    leaves = [result_settings(each) for each in settings]
    keys = dict.fromkeys(key for each in leaves for key in each)
    columns = {key: [each.get(key, "(not set)") for each in leaves] for key in keys}
    return {key: column for key, column in columns.items() if len({json.dumps(value) for value in column}) > 1}


def over_seeds(runs: Sequence[RunFiles]) -> dict[str, Any]:
    r"""The means of finished runs that differ in their seed alone, with 95% intervals.

    With n runs of mean m and standard deviation s an interval is :math:`m \pm t_{0.975, n - 1} s / \sqrt n`. It is of
    the spread from seed to seed, to which the split of the data belongs, and not of the number of test samples.

    Args:
        runs: at least two, all finished.

    Returns:
        ``count``, of the runs; ``test`` and ``validation``, by metric the ``mean``, and ``low`` and ``high``, None
        where a run's number is not finite, and for fewer than three runs.

    References:
        Student, The probable error of a mean, 1908.
    """
    summaries = [run.summary for run in runs if run.summary is not None]
    found: dict[str, Any] = {"count": len(summaries)}
    for split in ("test", "validation"):
        common = [name for name in summaries[0][split] if all(name in each[split] for each in summaries)]
        found[split] = {name: _mean([each[split][name] for each in summaries]) for name in common}
    return found


def _pairs(runs: Sequence[RunFiles], labels: Sequence[str]) -> list[tuple[_Tested, _Tested]]:
    """Returns all pairs of finished runs that were tested on the same samples."""
    tested = [
        (label, run.predictions, run.summary["headline"])
        for run, label in zip(runs, labels, strict=True)
        if run.summary is not None and run.predictions is not None
    ]
    return [(one, other) for one, other in combinations(tested, 2) if are_of_the_same_samples(one[1], other[1])]


def _mean(values: list[float]) -> dict[str, float | None]:
    mean = float(np.mean(values))
    if not np.isfinite(mean) or len(values) < FEWEST_SEEDS:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _but_for_the_seed(runs: Sequence[RunFiles]) -> list[list[int]]:
    """The places of finished runs that differ in their seed alone: of each seed the first, where there are several."""
    groups: dict[str, dict[Any, int]] = {}
    for place, run in enumerate(runs):
        if run.summary is not None and run.settings:
            same = {key: value for key, value in result_settings(run.settings).items() if key != "seed"}
            groups.setdefault(json.dumps(same, sort_keys=True), {}).setdefault(run.settings.get("seed"), place)
    return [list(places.values()) for places in groups.values() if len(places) > 1]


def _labels(runs: Sequence[RunFiles]) -> list[str]:
    """The runs' names; where two are the same, their folders."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]

"""Compares several runs as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from stormproof_train.config.identity import result_settings
from stormproof_train.evaluation.comparison import compare, have_same_samples
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.report.attempts import summarize_attempts
from stormproof_train.report.metric_curves import buckets_per_curve, curve_names, summarize_curve
from stormproof_train.report.records import ComparisonNumbers, MeanRecord, SeedStatistics
from stormproof_train.report.run_files import RunFiles
from stormproof_train.report.verdict import last_step, verdict
from stormproof_train.run.findings_file import active_findings

MAX_PAIRS = 28
"""Maximum number of pairs of runs to compare: all pairs of 8 runs. A comparison takes up to two seconds."""
_TestedRun = tuple[str, Predictions, str]  # label, predictions of the test split, headline metric
MIN_SEEDS = 3
"""Minimum number of runs for an interval over seeds. With two, the interval is 13 times as wide as their difference."""


def compare_runs(runs: Sequence[RunFiles]) -> ComparisonNumbers:
    """Returns all content of the page of several runs as plain values.

    Args:
        runs: Files of at least two runs, finished or not.
    """
    labels = _run_labels(runs)
    settings = find_differing_settings([run.settings for run in runs])
    pairs = _pair_runs(runs, labels)
    curves = [[metric for metric in curve_names(run.logged) if metric.startswith(("train/", "val/"))] for run in runs]
    buckets = buckets_per_curve(sum(map(len, curves)))
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
                "findings": [finding.as_dict() for finding in active_findings(run.findings)],
                "attempts": summarize_attempts(run.record, run.logged),
                "curves": {metric: summarize_curve(run.logged[metric], buckets) for metric in names},
            }
            for run, label, names in zip(runs, labels, curves, strict=True)
        ],
        "seeds": [
            {
                "runs": [labels[index] for index in group],
                "settings": {key: column[group[0]] for key, column in settings.items() if key != "seed"},
                **summarize_seeds([runs[index] for index in group]),
            }
            for group in _group_by_settings(runs)
        ],
        "paired": [
            {"runs": [first_label, second_label], **compare(first, second, {metric})}
            for (first_label, first, metric), (second_label, second, _) in pairs[:MAX_PAIRS]
        ],
        "pairs": len(pairs),
    }


def find_differing_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the settings that change the result and differ between runs.

    Example:
        >>> find_differing_settings([{"seed": 1, "model": {"width": 8}}, {"seed": 2, "model": {"width": 8}}])
        {'seed': [1, 2]}
    """
    leaves = [result_settings(run_settings) for run_settings in settings]
    keys = dict.fromkeys(key for run_settings in leaves for key in run_settings)
    columns = {key: [run_settings.get(key, "(not set)") for run_settings in leaves] for key in keys}
    return {key: column for key, column in columns.items() if len({json.dumps(value) for value in column}) > 1}


def summarize_seeds(runs: Sequence[RunFiles]) -> SeedStatistics:
    r"""Computes the means of finished runs that differ only in their seed, with 95% intervals.

    For n runs with mean m and standard deviation s, an interval is :math:`m \pm t_{0.975, n - 1} s / \sqrt n`. It
    covers the variation between seeds, including the split of the data, but not the sampling error of the test split.

    Args:
        runs: At least two finished runs.

    References:
        Student, The probable error of a mean, 1908.
    """
    summaries = [run.summary for run in runs if run.summary is not None]
    return {
        "count": len(summaries),
        "test": _mean_intervals([summary["test"] for summary in summaries]),
        "validation": _mean_intervals([summary["validation"] for summary in summaries]),
    }


def _pair_runs(runs: Sequence[RunFiles], labels: Sequence[str]) -> list[tuple[_TestedRun, _TestedRun]]:
    """Returns all pairs of finished runs that were tested on the same samples."""
    tested_runs = [
        (label, run.predictions, run.summary["headline"])
        for run, label in zip(runs, labels, strict=True)
        if run.summary is not None and run.predictions is not None
    ]
    return [(first, second) for first, second in combinations(tested_runs, 2) if have_same_samples(first[1], second[1])]


def _mean_intervals(metrics: Sequence[Mapping[str, float]]) -> dict[str, MeanRecord]:
    """Returns the means of the metrics that all runs have."""
    common_names = [name for name in metrics[0] if all(name in values for values in metrics)]
    return {name: _mean_interval([values[name] for values in metrics]) for name in common_names}


def _mean_interval(values: list[float]) -> MeanRecord:
    mean = float(np.mean(values))
    if not np.isfinite(mean) or len(values) < MIN_SEEDS:
        return {"mean": mean, "low": None, "high": None}
    half_width = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def _group_by_settings(runs: Sequence[RunFiles]) -> list[list[int]]:
    """Returns the indices of finished runs that differ only in their seed. For repeated seeds, uses the first run."""
    groups: dict[str, dict[Any, int]] = {}
    for index, run in enumerate(runs):
        if run.summary is not None and run.settings:
            settings_without_seed = {
                key: value for key, value in result_settings(run.settings).items() if key != "seed"
            }
            groups.setdefault(json.dumps(settings_without_seed, sort_keys=True), {}).setdefault(
                run.settings.get("seed"), index
            )
    return [list(indices_by_seed.values()) for indices_by_seed in groups.values() if len(indices_by_seed) > 1]


def _run_labels(runs: Sequence[RunFiles]) -> list[str]:
    """Returns the names of the runs, or their folders if names repeat."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]

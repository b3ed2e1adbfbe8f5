"""Builds the page of several runs from their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.console import format_value
from stormproof_train.evaluation.intervals import IntervalRecord
from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.report.kit.line_chart import line_chart
from stormproof_train.report.kit.page import Page, Section
from stormproof_train.report.records import ComparedRun, ComparisonNumbers, MeanRecord, RunPair, SeedGroup
from stormproof_train.report.tables import attempts_table, drop_empty, findings_table, format_setting, metric_names

INTERVAL_AND_TEST_DISAGREE = (
    "For at least one pair, the interval and McNemar's test disagree. Trust McNemar's test: it is exact. A bootstrap "
    "interval is too narrow if the two runs differ on few samples."
)


def comparison_page(numbers: ComparisonNumbers) -> Page:
    """Builds the page of several runs.

    Args:
        numbers: Result of :func:`stormproof_train.report.run_comparison.compare_runs`.
    """
    runs = numbers["runs"]
    labels = [run["label"] for run in runs]
    return Page(
        title=f"{len(runs)} runs",
        tone="",
        sentences=[],
        sections=[
            _settings_section(numbers["settings"], labels),
            _results_section(runs, numbers["seeds"], numbers["paired"], numbers["pairs"]),
            Section("Curves", charts=_metric_charts(runs, numbers["last_step"])),
            *(_run_section(run) for run in runs),
        ],
        runs=[Line(label, number) for number, label in enumerate(labels)],
    )


def _settings_section(settings: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> Section:
    if not settings:
        return Section("Settings that differ", ["These runs do not differ in any setting that changes the result."])
    rows = [
        (label, *(format_setting(column[index]) for column in settings.values())) for index, label in enumerate(labels)
    ]
    return Section("Settings that differ", tables=[("", Table(("run", *settings), rows))])


def _results_section(
    runs: Sequence[ComparedRun],
    seeds: Sequence[SeedGroup],
    paired: Sequence[RunPair],
    num_pairs: int,
) -> Section:
    metrics = metric_names(run["summary"] for run in runs if run["summary"])
    head = (
        "run",
        "status",
        *(f"{split} {name}" for name in metrics for split in ("test", "validation")),
        "steps",
        "seconds",
    )
    has_intervals = any(run["summary"] and run["summary"].get("intervals") for run in runs)
    title = f"Each run{', with 95% intervals over the test samples' * has_intervals}"
    tables = [(title, drop_empty(Table(head, [_run_row(run, metrics) for run in runs])))]
    if seeds:
        tables.append(("Over seeds: mean, and 95% t interval for three or more seeds", _seeds_table(seeds, metrics)))
    for name in dict.fromkeys(name for pair in paired for name in pair["differences"]):
        pairs = [pair for pair in paired if name in pair["differences"]]
        subset_note = f" (the first {len(paired)} of {num_pairs} pairs)" if len(paired) < num_pairs else ""
        title = f"On the same test samples, with 95% intervals of a paired bootstrap{subset_note}"
        tables.append((title, _differences_table(pairs, name)))
    return Section("Results", [INTERVAL_AND_TEST_DISAGREE] if any(map(_disagree, paired)) else [], tables)


def _disagree(pair: RunPair) -> bool:
    """Returns True if exactly one of the interval and McNemar's test shows a difference."""
    if "mcnemar" not in pair:
        return False
    (difference,) = pair["differences"].values()
    low, high = difference["low"], difference["high"]
    if low is None or high is None:  # equal predictions
        return False
    excludes_zero = not low <= 0 <= high
    return excludes_zero != (pair["mcnemar"]["p_value"] < 0.05)


def _run_row(run: ComparedRun, metrics: Sequence[str]) -> tuple[str, ...]:
    summary = run["summary"]
    if summary is None:
        return run["label"], run["status"], *("" for _ in range(2 * len(metrics) + 2))
    intervals = summary.get("intervals", {})
    metric_cells = []
    for name in metrics:
        interval_text = f" ({' to '.join(map(format_value, intervals[name]))})" if name in intervals else ""
        metric_cells += [
            _format_optional(summary["test"].get(name)) + interval_text,
            _format_optional(summary["validation"].get(name)),
        ]
    return run["label"], run["status"], *metric_cells, f"{summary['steps']:,}", f"{summary['seconds']:,.1f}"


def _seeds_table(seeds: Sequence[SeedGroup], metrics: Sequence[str]) -> Table:
    head = ("settings", "n", *(f"{split} {name}" for name in metrics for split in ("test", "validation")))
    rows = [
        (
            _group_label(group), str(group["count"]),
            *(_format_mean(group[split].get(name)) for name in metrics for split in ("test", "validation")),
        )
        for group in seeds
    ]  # fmt: skip
    return drop_empty(Table(head, rows))


def _group_label(group: SeedGroup) -> str:
    """Returns the settings of a group, or the labels of its runs if no setting distinguishes it."""
    return ", ".join(f"{key}={format_setting(value)}" for key, value in group["settings"].items()) or ", ".join(
        group["runs"]
    )


def _differences_table(paired: Sequence[RunPair], name: str) -> Table:
    head = ["", "samples", f"difference of {name}"]
    if "mcnemar" in paired[0]:
        head += ["only one correct", "McNemar's p"]
    return Table(head, [_difference_row(pair, name) for pair in paired])


def _difference_row(pair: RunPair, name: str) -> tuple[str, ...]:
    row = (" minus ".join(pair["runs"]), f"{pair['samples']:,}", _format_interval(pair["differences"][name]))
    test = pair.get("mcnemar")
    if test is None:
        return row
    counts = f"{test['only_first_correct']:,} : {test['only_second_correct']:,}"
    return *row, counts, f"{test['p_value']:.2g}"


def _metric_charts(runs: Sequence[ComparedRun], last_step: int) -> list[Chart]:
    names = dict.fromkeys(name for run in runs for name in run["curves"])
    order = sorted(names, key=lambda name: (name.rpartition("/")[2] not in {"loss", "accuracy", "rmse"}, name))
    labels = [run["label"] for run in runs]
    return [
        line_chart(
            name, {run["label"]: run["curves"][name] for run in runs if name in run["curves"]}, last_step, order=labels
        )
        for name in order
    ]


def _run_section(run: ComparedRun) -> Section:
    tables = [("", findings_table(run["findings"]))] if run["findings"] else []
    folded = [("Attempts", attempts_table(run["attempts"]))] if run["attempts"] else []
    return Section(run["label"], run["verdict"]["sentences"], tables, folded=folded)


def _format_optional(value: float | None) -> str:
    return "" if value is None else format_value(value)


def _format_mean(mean: MeanRecord | None) -> str:
    return "" if mean is None else _format_interval({"value": mean["mean"], "low": mean["low"], "high": mean["high"]})


def _format_interval(number: IntervalRecord) -> str:
    low, high = number["low"], number["high"]
    return _format_optional(number["value"]) + (
        "" if low is None or high is None else f" ({format_value(low)} to {format_value(high)})"
    )

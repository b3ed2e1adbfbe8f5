"""What the page of one run says, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.console import result_table, shown
from stormproof_train.counted import counted
from stormproof_train.report.kit.chart import Chart, Table
from stormproof_train.report.kit.evaluation_charts import class_names, evaluation_charts
from stormproof_train.report.kit.heat_chart import heat_chart
from stormproof_train.report.kit.line_chart import FINDING, RESTART, Event, line_chart
from stormproof_train.report.kit.section import Page, Section
from stormproof_train.report.kit.time_chart import time_chart
from stormproof_train.report.tables import (
    attempts_table,
    classes_table,
    compact,
    findings_table,
    residuals_table,
    settings_table,
)

ELSEWHERE = ("gradients/", "updates/", "units/", "time/", "checkpoint/", "recovery/")
"""What these names tell has a part of its own on the page."""
DEPTH = {
    "gradients/norm": ("Norm of the gradient by layer", False),
    "updates/ratio": ("Size of the update relative to the weights, by layer", False),
}
UNITS = {
    "units/dead_fraction": ("Dead units, which put out one value in a whole validation", True),
    "units/silent_fraction": ("Silent units, which put out one value in the sampled training batches", True),
    "units/sparsity": ("Zeros among the outputs in training", True),
}


def one_run_page(numbers: Mapping[str, Any]) -> Page:
    """The page of a run.

    Args:
        numbers: as :func:`stormproof_train.report.numbers.of_run` gives them.
    """
    events, last = _events(numbers), numbers["last_step"]
    return Page(
        title=numbers["name"],
        tone=numbers["verdict"]["tone"],
        sentences=numbers["verdict"]["sentences"],
        sections=[
            _result(numbers),
            _findings(numbers["findings"]),
            Section("Curves", charts=_curves(numbers["curves"], last, events)),
            Section(
                "Gradients and updates",
                charts=_named(numbers["curves"], ("gradients/", "updates/"), last, events),
                wide_charts=_heat_charts(numbers["layers"], DEPTH),
            ),
            Section(
                "Units",
                sentences=_of_units(numbers),
                charts=_named(numbers["curves"], ("units/",), last, events),
                wide_charts=_heat_charts(numbers["layers"], UNITS),
            ),
            Section("Time", wide_charts=[time_chart(numbers["time"])] if numbers["time"] else []),
            _attempts(numbers),
            _evaluation(numbers["evaluation"]),
            _configuration(numbers),
        ],
    )


def metric_of(name: str) -> str:
    """What a logged name measures, whichever split it is of.

    Example:
        >>> metric_of("val/accuracy"), metric_of("train/epoch_loss"), metric_of("optimizer/lr")
        ('accuracy', 'loss', 'optimizer/lr')
        >>> metric_of("generalization/train_loss")  # of training samples, in evaluation mode
        'loss'
    """
    split, _, metric = name.replace("generalization/train_", "train/").partition("/")
    return metric.removeprefix("epoch_") if split in {"train", "val"} else name


def _events(numbers: Mapping[str, Any]) -> list[Event]:
    restarts = [
        Event(each["first_step"], RESTART, f"attempt {each['number']} goes on")
        for each in numbers["attempts"][1:]
        if each["first_step"] is not None
    ]
    found: dict[int, list[str]] = {}
    for each in numbers["findings"]:
        if each["severity"] != "info":
            where = f" in {each['where']}" if each["where"] else ""
            found.setdefault(each["since_step"], []).append(f"{each['problem'].replace('_', ' ')}{where}")
    return restarts + [Event(step, FINDING, "; ".join(texts)) for step, texts in found.items()]


def _result(numbers: Mapping[str, Any]) -> Section:
    summary = numbers["summary"]
    if summary is None:
        return Section("Result")
    attempts = len(numbers["attempts"])
    counts = (
        f"{counted(summary['parameters'], 'parameter')}, {counted(summary['steps'], 'step')}, "
        f"{summary['seconds']:,.1f} s in {counted(attempts, 'attempt')}."
    )
    how = "Tested" if summary["test"] else "Validated"
    chosen = [f"{how} were the weights of {summary['weights']}."] if summary.get("weights") else []
    return Section("Result", [counts, *chosen], [("", compact(Table(*result_table(summary))))])


def _findings(findings: Sequence[Mapping[str, Any]]) -> Section:
    return Section("Findings", tables=[("", findings_table(findings))] if findings else [])


def _curves(curves: Mapping[str, Mapping[str, Any]], last: int, events: Sequence[Event]) -> list[Chart]:
    by_metric: dict[str, dict[str, Mapping[str, Any]]] = {}
    # training, then validation, then the rest: each looks the same in all charts that have it
    for name in sorted(curves, key=lambda name: ("/epoch_" in name, not name.startswith("train/"), name[:4] != "val/")):
        if not name.startswith(ELSEWHERE):
            by_metric.setdefault(metric_of(name), {})[name] = curves[name]
    order = sorted(by_metric, key=lambda metric: (metric != "loss", "/" in metric))
    return [line_chart(metric, by_metric[metric], last, events) for metric in order]


def _named(
    curves: Mapping[str, Mapping[str, Any]], groups: tuple[str, ...], last: int, events: Sequence[Event]
) -> list[Chart]:
    return [line_chart(name, {name: curve}, last, events) for name, curve in curves.items() if name.startswith(groups)]


def _heat_charts(layers: Mapping[str, Any], groups: Mapping[str, tuple[str, bool]]) -> list[Chart]:
    return [
        heat_chart(title, layers[group], is_share=is_share)
        for group, (title, is_share) in groups.items()
        if group in layers and not _is_zero(layers[group])
    ]


def _is_zero(cells: Mapping[str, Any]) -> bool:
    """Whether a picture would be of one colour: nothing else than 0 at any time."""
    return all(value == 0 for row in cells["largest"] for value in row) and not any(map(any, cells["non_finite"]))


def _of_units(numbers: Mapping[str, Any]) -> list[str]:
    saturated = [each for each in numbers["findings"] if each["problem"] == "saturated_units"]
    return [
        *(
            f"{UNITS[group][0]}: none, at any time."
            for group, cells in numbers["layers"].items()
            if group in UNITS and _is_zero(cells)
        ),
        *(f"Saturated units were found in {each['where']} since step {each['since_step']:,}." for each in saturated),
    ]


def _attempts(numbers: Mapping[str, Any]) -> Section:
    attempts = numbers["attempts"]
    again = sum(each["steps_done_again"] or 0 for each in attempts)
    restarts = len(attempts) - 1
    sentences = (
        [f"{restarts} restart{'s' * (restarts != 1)}; {again:,} steps were lost and done again."]
        if restarts > 0
        else []
    )
    sentences += [
        f"Attempt {each['number']} skipped checkpoint {name}: {reason}."
        for each in attempts
        for name, reason in each["skipped"].items()
    ]
    return Section("Attempts", sentences, [("", attempts_table(attempts))] if attempts else [])


def _evaluation(evaluation: Mapping[str, Any] | None) -> Section:
    if evaluation is None:
        return Section("Evaluation of the test split")
    head = [
        f"{name} {shown(each['value'])}"
        + (f" ({shown(each['low'])} to {shown(each['high'])})" if each["low"] is not None else "")
        for name, each in evaluation["headline"].items()
    ]
    sentence = f"{counted(evaluation['samples'], 'sample')}; with 95% bootstrap intervals: {', '.join(head)}."
    residuals, classes = evaluation.get("residuals"), evaluation.get("classes")
    return Section(
        "Evaluation of the test split",
        [sentence],
        [("Residuals, target minus prediction", residuals_table(residuals))] if residuals else [],
        charts=evaluation_charts(evaluation),
        folded=[("Each class", classes_table(classes, class_names(evaluation)))] if classes else [],
    )


def _configuration(numbers: Mapping[str, Any]) -> Section:
    if not numbers["settings"]:
        return Section("Configuration", ["Its config.yaml is missing."])
    changed = numbers["changed"]
    return Section(
        "Configuration",
        [] if changed else ["All is as by default."],
        [("What differs from the default", settings_table(changed))] if changed else [],
        folded=[
            (
                "Every setting",
                settings_table([{"key": key, "value": value} for key, value in numbers["settings"].items()]),
            )
        ],
    )

"""Builds the page of one run from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.console import format_value, result_table
from stormproof_train.pluralize import pluralize
from stormproof_train.report.evaluation_plots import PlottedEvaluation
from stormproof_train.report.kit.chart import STEP_ENCODING, Chart, Line, Table
from stormproof_train.report.kit.evaluation_charts import class_names, evaluation_charts
from stormproof_train.report.kit.heat_chart import heat_chart
from stormproof_train.report.kit.line_chart import FINDING, RESTART, Event, line_chart
from stormproof_train.report.kit.page import Page, Section
from stormproof_train.report.layers import LayerCells
from stormproof_train.report.metric_curves import CurveSummary
from stormproof_train.report.records import ReportedFinding, RunNumbers
from stormproof_train.report.tables import (
    attempts_table,
    classes_table,
    drop_empty,
    findings_table,
    residuals_table,
    settings_table,
)
from stormproof_train.report.times import PARTS, StepTimes

SECTION_PREFIXES = ("gradients/", "updates/", "units/", "time/", "probe/", "checkpoint/", "recovery/")
"""Prefixes of names that have their own section on the page."""
GRADIENT_HEAT_MAPS = {
    "gradients/norm": ("Gradient norm by layer", False),
    "updates/ratio": ("Update-to-weight ratio by layer", False),
}
UNIT_HEAT_MAPS = {
    "units/dead_fraction": ("Dead units, constant over a whole validation pass", True),
    "units/silent_fraction": ("Silent units, constant over the sampled training batches", True),
    "units/sparsity": ("Share of zeros among the outputs in training", True),
}


def run_page(numbers: RunNumbers) -> Page:
    """Builds the page of a run.

    Args:
        numbers: Result of :func:`stormproof_train.report.write.collect_run_numbers`.
    """
    restarts, last_step = _restart_events(numbers), numbers["last_step"]
    events = restarts + _finding_events([entry for entry in numbers["findings"] if entry["severity"] != "info"])
    return Page(
        title=numbers["name"],
        tone=numbers["verdict"]["tone"],
        sentences=numbers["verdict"]["sentences"],
        sections=[
            _result_section(numbers),
            _findings_section(numbers["findings"], last_step, restarts),
            Section("Curves", charts=_metric_charts(numbers["curves"], last_step, events)),
            Section(
                "Gradients and updates",
                charts=_charts_of_groups(numbers["curves"], ("gradients/", "updates/"), last_step, events),
                wide_charts=_heat_charts(numbers["layers"], GRADIENT_HEAT_MAPS),
            ),
            Section(
                "Units",
                sentences=_unit_sentences(numbers),
                charts=_charts_of_groups(numbers["curves"], ("units/",), last_step, events),
                wide_charts=_heat_charts(numbers["layers"], UNIT_HEAT_MAPS),
            ),
            Section(
                "Time",
                charts=_charts_of_groups(numbers["curves"], ("probe/",), last_step, events),
                wide_charts=[time_chart(numbers["time"])] if numbers["time"] else [],
            ),
            _attempts_section(numbers),
            _evaluation_section(numbers["evaluation"]),
            _configuration_section(numbers),
        ],
    )


def metric_name(name: str) -> str:
    """Returns the metric that a logged name measures, without its split.

    Example:
        >>> metric_name("val/accuracy"), metric_name("train/epoch_loss"), metric_name("optimizer/lr")
        ('accuracy', 'loss', 'optimizer/lr')
        >>> metric_name("generalization/train_loss")  # of training samples, in evaluation mode
        'loss'
    """
    split, _, metric = name.replace("generalization/train_", "train/").partition("/")
    return metric.removeprefix("epoch_") if split in {"train", "val"} else name


def _restart_events(numbers: RunNumbers) -> list[Event]:
    return [
        Event(entry["first_step"], RESTART, f"attempt {entry['number']} resumes")
        for entry in numbers["attempts"][1:]
        if entry["first_step"] is not None
    ]


def _finding_events(findings: Sequence[ReportedFinding]) -> list[Event]:
    names_by_step: dict[int, list[str]] = {}
    for finding in findings:
        names_by_step.setdefault(finding["since_step"], []).append(_finding_name(finding))
    return [Event(step, FINDING, "; ".join(names)) for step, names in names_by_step.items()]


def _result_section(numbers: RunNumbers) -> Section:
    summary = numbers["summary"]
    if summary is None:
        return Section("Result")
    attempts = len(numbers["attempts"])
    counts_sentence = (
        f"{pluralize(summary['parameters'], 'parameter')}, {pluralize(summary['steps'], 'step')}, "
        f"{summary['seconds']:,.1f} s in {pluralize(attempts, 'attempt')}."
    )
    action = "tested" if summary["test"] else "validated"
    weights_sentences = [f"The weights of {summary['weights']} were {action}."] if summary.get("weights") else []
    return Section("Result", [counts_sentence, *weights_sentences], [("", drop_empty(Table(*result_table(summary))))])


def _findings_section(findings: Sequence[ReportedFinding], last_step: int, restarts: Sequence[Event]) -> Section:
    charts = [
        line_chart(_finding_name(finding), finding["curves"], last_step, [*restarts, *_finding_events([finding])])
        for finding in findings
        if finding["curves"]
    ]
    return Section("Findings", tables=[("", findings_table(findings))] if findings else [], charts=charts)


def _finding_name(finding: ReportedFinding) -> str:
    return finding["problem"].upper() + (f" in {finding['where']}" if finding["where"] else "")


def _metric_charts(curves: Mapping[str, CurveSummary], last_step: int, events: Sequence[Event]) -> list[Chart]:
    by_metric: dict[str, dict[str, CurveSummary]] = {}
    # training, then validation, then the rest, so that each has the same color in all charts
    for name in sorted(curves, key=lambda name: ("/epoch_" in name, not name.startswith("train/"), name[:4] != "val/")):
        if not name.startswith(SECTION_PREFIXES):
            by_metric.setdefault(metric_name(name), {})[name] = curves[name]
    order = sorted(by_metric, key=lambda metric: (metric != "loss", "/" in metric))
    return [line_chart(metric, by_metric[metric], last_step, events) for metric in order]


def _charts_of_groups(
    curves: Mapping[str, CurveSummary], groups: tuple[str, ...], last_step: int, events: Sequence[Event]
) -> list[Chart]:
    return [
        line_chart(name, {name: curve}, last_step, events) for name, curve in curves.items() if name.startswith(groups)
    ]


def _heat_charts(layers: Mapping[str, LayerCells], groups: Mapping[str, tuple[str, bool]]) -> list[Chart]:
    return [
        heat_chart(title, layers[group], is_share=is_share)
        for group, (title, is_share) in groups.items()
        if group in layers and not _is_zero(layers[group])
    ]


def _is_zero(cells: LayerCells) -> bool:
    """Returns True if all values are 0 at all times, so that the heat map would have a single color."""
    return all(value == 0 for row in cells["largest"] for value in row) and not any(map(any, cells["non_finite"]))


def _unit_sentences(numbers: RunNumbers) -> list[str]:
    saturated_findings = [finding for finding in numbers["findings"] if finding["problem"] == "saturated_units"]
    return [
        *(
            f"{UNIT_HEAT_MAPS[group][0]}: none at any time."
            for group, cells in numbers["layers"].items()
            if group in UNIT_HEAT_MAPS and _is_zero(cells)
        ),
        *(
            f"Saturated units were found in {finding['where']} since step {finding['since_step']:,}."
            for finding in saturated_findings
        ),
    ]


def _attempts_section(numbers: RunNumbers) -> Section:
    attempts = numbers["attempts"]
    num_repeated_steps = sum(attempt["steps_done_again"] or 0 for attempt in attempts)
    restarts = len(attempts) - 1
    sentences = (
        [f"{restarts} restart{'s' * (restarts != 1)}; {num_repeated_steps:,} steps were lost and repeated."]
        if restarts > 0
        else []
    )
    sentences += [
        f"Attempt {attempt['number']} skipped checkpoint {name}: {reason}."
        for attempt in attempts
        for name, reason in attempt["skipped"].items()
    ]
    return Section("Attempts", sentences, [("", attempts_table(attempts))] if attempts else [])


def _evaluation_section(evaluation: PlottedEvaluation | None) -> Section:
    if evaluation is None:
        return Section("Evaluation of the test split")
    metric_texts = [
        f"{name} {format_value(metric['value'])}"
        + (
            f" ({format_value(metric['low'])} to {format_value(metric['high'])})"
            if metric["low"] is not None and metric["high"] is not None
            else ""
        )
        for name, metric in evaluation["headline"].items()
    ]
    sentence = f"{pluralize(evaluation['samples'], 'sample')}; with 95% bootstrap intervals: {', '.join(metric_texts)}."
    residuals, classes = evaluation.get("residuals"), evaluation.get("classes")
    return Section(
        "Evaluation of the test split",
        [sentence],
        [("Residuals, target minus prediction", residuals_table(residuals))] if residuals else [],
        charts=evaluation_charts(evaluation),
        folded=[("Each class", classes_table(classes, class_names(evaluation)))] if classes else [],
    )


def _configuration_section(numbers: RunNumbers) -> Section:
    if not numbers["settings"]:
        return Section("Configuration", ["The file config.yaml is missing."])
    changes = numbers["changed"]
    return Section(
        "Configuration",
        [] if changes else ["All settings have their default values."],
        [("Settings that differ from the default", settings_table(changes))] if changes else [],
        folded=[
            (
                "Every setting",
                settings_table([{"key": key, "value": value} for key, value in numbers["settings"].items()]),
            )
        ],
    )


def time_chart(time: StepTimes) -> Chart:
    """Draws the result of :func:`stormproof_train.report.times.step_times`."""
    lines = [Line(part, number) for number, part in enumerate(PARTS)]
    data: dict[str, list[Any]] = {"line": [], "label": [], "start": [], "end": [], "low": [], "high": []}
    starts = time["starts"]
    lower_edges = [0.0] * len(starts)
    for line in lines:
        upper_edges = [
            low + 1000 * seconds for low, seconds in zip(lower_edges, time["seconds"][line.label], strict=True)
        ]
        data["line"] += [line.number] * len(starts)
        data["label"] += [line.label] * len(starts)
        data["start"] += starts
        data["end"] += time["ends"]
        data["low"] += lower_edges
        data["high"] += upper_edges
        lower_edges = upper_edges
    total = sum(time["mean"].values())
    rows = [
        (part, f"{1000 * mean_seconds:.4g} ms", f"{mean_seconds / total:.1%}")
        for part, mean_seconds in time["mean"].items()
    ]
    shares_text = ", ".join(f"{part} {share}" for part, _, share in rows)
    return Chart(
        title="Time per step in ms",
        text=f"Time per step in milliseconds, over the steps: {shares_text}.",
        spec=_spec(lines),
        data={"bars": data},
        legend=lines,
        is_filled=True,
        note=(
            f"A step takes {1000 * total:.4g} ms: {shares_text}. Compute is the time of a batch without waiting "
            "for data. Other, such as validation and logging, is the remaining time between two logging steps."
        ),
        table=Table(("part", "per step", "share"), rows),
    )


def _spec(lines: list[Line]) -> dict[str, Any]:
    return {
        "width": "container",
        "height": 160,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "bars"},
        "transform": [{"calculate": "datum.high - datum.low", "as": "took"}],
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": "start", **STEP_ENCODING, "scale": {"nice": False, "zero": False}},
            "x2": {"field": "end"},
            "y": {"field": "low", "type": "quantitative", "title": None},
            "y2": {"field": "high"},
            "color": {
                "field": "line", "type": "nominal", "legend": None,
                "scale": {"domain": [line.number for line in lines], "range": [line.color for line in lines]},
            },
            "tooltip": [
                {"field": "label", "title": "part"}, {"field": "end", "title": "up to step", "format": ",d"},
                {"field": "took", "title": "ms per step", "format": ".4g"},
            ],
        },
    }  # fmt: skip

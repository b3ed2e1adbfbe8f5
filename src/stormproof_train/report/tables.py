"""Builds the tables of run pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stormproof.finding import Finding, FindingRecord
from stormproof.problem import Problem
from stormproof_train.config.identity import SettingRecord
from stormproof_train.console import drop_empty_columns, format_value
from stormproof_train.evaluation.regression import QUANTILES
from stormproof_train.report.attempts import AttemptSummary
from stormproof_train.report.kit.chart import Table
from stormproof_train.run.records import RunSummary


def metric_names(summaries: Iterable[RunSummary]) -> list[str]:
    """Returns the names of all tested or validated metrics without duplicates."""
    return list(dict.fromkeys(name for summary in summaries for name in [*summary["test"], *summary["validation"]]))


def findings_table(findings: Sequence[FindingRecord]) -> Table:
    """Returns a table of findings. Each code links to its page in the documentation."""
    head = (
        "severity", "finding", "place", "since step", "reported at step", "evidence", "likely cause", "advice",
        "explains",
    )  # fmt: skip
    links = {problem.code: problem.url for problem in Problem}
    links |= {finding.code: finding.url for finding in map(Finding.from_dict, findings) if finding.url}
    return drop_empty(Table(head, [_finding_row(finding) for finding in findings], links))


def _finding_row(finding: FindingRecord) -> tuple[str, ...]:
    """Returns the cells of a finding."""
    evidence = Finding.from_dict(finding).description
    return (
        finding["severity"],
        finding["problem"].upper(),
        finding["where"],
        f"{finding['since_step']:,}",
        f"{finding['step']:,}",
        _capitalize(evidence),
        _capitalize(finding["likely_cause"]),
        finding["advice"],
        ", ".join(_format_consequence(consequence) for consequence in finding["consequences"]),
    )


def _format_consequence(consequence: str) -> str:
    """Formats the name of a finding with its code, such as ``DEAD_UNITS in network.2``."""
    problem, separator, place = consequence.partition(" ")
    return f"{problem.upper()}{separator}{place}"


def _capitalize(text: str) -> str:
    """Returns the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def attempts_table(attempts: Sequence[AttemptSummary]) -> Table:
    """Builds the table of attempts.

    Args:
        attempts: Result of :func:`stormproof_train.report.attempts.summarize_attempts`.
    """
    head = ("", "start (UTC)", "seconds", "host", "ranks", "steps", "steps repeated", "seconds to resume", "end")
    return drop_empty(Table(
        head,
        [
            (
                str(attempt["number"]), str(attempt["start"] or "")[:19].replace("T", " "),
                _format_seconds(attempt["seconds"]),
                str(attempt["host"] or ""), _format_count(attempt["ranks"]), _format_steps(attempt),
                _format_count(attempt["steps_done_again"]),
                _format_seconds(attempt["seconds_until_back"]), _format_end(attempt),
            )
            for attempt in attempts
        ],
    ))  # fmt: skip


def classes_table(classes: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Table:
    """Builds the table of the classes of an ``evaluation.json``."""
    names = ("precision", "recall", "f1", "roc_auc", "average_precision")
    rows = [
        (
            class_name,
            f"{metrics['samples']:,}",
            *("" if metrics[name] is None else format_value(metrics[name]) for name in names),
        )
        for class_name, metrics in zip(class_names, classes, strict=True)
    ]
    return Table(("class", "samples", *(name.replace("_", " ") for name in names)), rows)


def residuals_table(residuals: Sequence[Mapping[str, Any]]) -> Table:
    """Builds the table of the residuals of an ``evaluation.json``."""
    return Table(
        ("output", "bias", "spread", *(f"{quantile:.0%}" for quantile in QUANTILES)),
        [
            (
                str(number), format_value(summary["bias"]),
                "" if summary["spread"] is None else format_value(summary["spread"]),
                *map(format_value, summary["quantiles"]),
            )
            for number, summary in enumerate(residuals)
        ],
    )  # fmt: skip


def settings_table(settings: Sequence[SettingRecord]) -> Table:
    """Builds a table of settings with their values and, if any has one, their defaults."""
    if any("default" in setting for setting in settings):
        rows = [
            (
                setting["key"],
                format_setting(setting["value"]),
                format_setting(setting["default"]) if "default" in setting else "(none)",
            )
            for setting in settings
        ]
        return Table(("setting", "value", "default"), rows)
    return Table(("setting", "value"), [(setting["key"], format_setting(setting["value"])) for setting in settings])


def drop_empty(table: Table) -> Table:
    """Returns the table without columns that are empty in every row."""
    return Table(*drop_empty_columns(table.head, table.rows), table.links)


def format_setting(value: Any) -> str:
    """Formats a setting as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _format_count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _format_seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _format_steps(attempt: AttemptSummary) -> str:
    first_step, last_step = attempt["first_step"], attempt["last_step"]
    if first_step is None:
        return ""
    end = "?" if last_step is None else f"{last_step:,}"
    return f"{first_step:,} to {end}"


def _format_end(attempt: AttemptSummary) -> str:
    if attempt["end"] is None:
        return "no end recorded"
    reason, code = attempt["reason"], attempt["code"]
    return f"{reason or 'finished'}{f' (code {code})' if code else ''}"

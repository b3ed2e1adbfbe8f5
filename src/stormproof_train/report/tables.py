"""The tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stormproof_train.console import but_empty_columns, shown
from stormproof_train.evaluation.regression import QUANTILES
from stormproof_train.report.kit.chart import Table


def metrics_of(summaries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all that was tested or validated, each once."""
    return list(dict.fromkeys(name for each in summaries for name in [*each["test"], *each["validation"]]))


def findings_table(findings: Sequence[Mapping[str, Any]]) -> Table:
    """Findings as plain values."""
    return compact(Table(
        ("severity", "what", "since step", "told at step", "evidence", "what to try", "explains"),
        [
            (
                each["severity"],
                each["problem"].replace("_", " ") + (f" in {each['where']}" if each["where"] else ""),
                f"{each['since_step']:,}", f"{each['step']:,}",
                ", ".join(f"{name.replace('_', ' ')} {_evidence(value)}" for name, value in each["evidence"].items()),
                each["advice"], ", ".join(each["consequences"]),
            )
            for each in findings
        ],
    ))  # fmt: skip


def attempts_table(attempts: Sequence[Mapping[str, Any]]) -> Table:
    """Attempts as :func:`stormproof_train.report.attempts.of_attempts` gives them."""
    head = ("", "start (UTC)", "seconds", "host", "ranks", "steps", "done again", "back after", "how it ended")
    return compact(Table(
        head,
        [
            (
                str(each["number"]), str(each["start"] or "")[:19].replace("T", " "), _seconds(each["seconds"]),
                str(each["host"] or ""), _known(each["ranks"]), _steps(each), _known(each["steps_done_again"]),
                _seconds(each["seconds_until_back"]), _end(each),
            )
            for each in attempts
        ],
    ))  # fmt: skip


def classes_table(classes: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Table:
    """The classes of an ``evaluation.json``."""
    names = ("precision", "recall", "f1", "roc_auc", "average_precision")
    rows = [
        (called, f"{each['samples']:,}", *("" if each[name] is None else shown(each[name]) for name in names))
        for called, each in zip(class_names, classes, strict=True)
    ]
    return Table(("class", "samples", *(name.replace("_", " ") for name in names)), rows)


def residuals_table(residuals: Sequence[Mapping[str, Any]]) -> Table:
    """The residuals of an ``evaluation.json``."""
    return Table(
        ("output", "bias", "spread", *(f"{quantile:.0%}" for quantile in QUANTILES)),
        [
            (
                str(number), shown(each["bias"]), "" if each["spread"] is None else shown(each["spread"]),
                *map(shown, each["quantiles"]),
            )
            for number, each in enumerate(residuals)
        ],
    )  # fmt: skip


def settings_table(settings: Sequence[Mapping[str, Any]]) -> Table:
    """Settings with their value, and their default where there is one."""
    if any("default" in each for each in settings):
        rows = [
            (each["key"], in_yaml(each["value"]), in_yaml(each["default"]) if "default" in each else "(none)")
            for each in settings
        ]
        return Table(("setting", "value", "default"), rows)
    return Table(("setting", "value"), [(each["key"], in_yaml(each["value"])) for each in settings])


def compact(table: Table) -> Table:
    """The same without the columns in which no row says anything."""
    return Table(*but_empty_columns(table.head, table.rows))


def in_yaml(value: Any) -> str:
    """A setting as a user types it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _evidence(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _known(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _steps(attempt: Mapping[str, Any]) -> str:
    first, last = attempt["first_step"], attempt["last_step"]
    return "" if first is None else f"{first:,} to {'?' if last is None else f'{last:,}'}"


def _end(attempt: Mapping[str, Any]) -> str:
    if attempt["end"] is None:
        return "not yet, as far as it says"
    reason, code = attempt["reason"], attempt["code"]
    return f"{reason or 'finished'}{f' (code {code})' if code else ''}"

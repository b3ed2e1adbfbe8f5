"""States the outcome of a run in a few sentences, using only its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stormproof.finding import Finding, Severity
from stormproof_train.console import format_value
from stormproof_train.evaluation.conclusions import compare_with_constant, compare_with_linear, conclusions
from stormproof_train.evaluation.records import Evaluation
from stormproof_train.metric_direction import HEADLINE, higher_is_better
from stormproof_train.pluralize import pluralize
from stormproof_train.report.logged import Series
from stormproof_train.report.records import Verdict
from stormproof_train.report.run_files import RunFiles
from stormproof_train.run.findings_file import active_findings
from stormproof_train.run.records import RunSummary

RESUME_TEXT = "same command"
"""Part of the reason of an attempt that already states how to resume."""


def verdict(run: RunFiles) -> Verdict:
    """Returns the outcome of a run."""
    active = active_findings(run.findings)
    comparisons = [] if run.evaluation is None else conclusions(run.evaluation)
    missing_sentences = (
        ["metrics.csv is missing, so there are no curves."] if run.lacks_metrics and last_step(run) else []
    )
    sentences = [
        _status_sentence(run),
        _findings_sentence(active, _has_training_health(run.settings)),
        *missing_sentences,
        *(f"{problem}." for problem in run.problems),
        *comparisons,
    ]
    non_finite = _non_finite_metrics(run.summary)
    if non_finite:
        sentences.insert(1, f"These metrics are not finite: {', '.join(non_finite)}.")
    return {"tone": _tone(run, active), "sentences": sentences}


def _tone(run: RunFiles, active: Sequence[Finding]) -> str:
    has_critical = any(finding.severity == Severity.CRITICAL for finding in active)
    if run.record["status"] == "failed" or has_critical or _non_finite_metrics(run.summary):
        return "bad"
    if run.record["status"] != "finished":
        return "open"
    return "doubtful" if active or _is_doubtful(run.evaluation) else "good"


def _is_doubtful(evaluation: Evaluation | None) -> bool:
    """Returns True if the network is not clearly better than a constant, or worse than a linear model."""
    if evaluation is None:
        return False
    constant, linear = compare_with_constant(evaluation), compare_with_linear(evaluation)
    return (constant is not None and not constant.better) or (linear is not None and linear.better is False)


def _non_finite_metrics(summary: RunSummary | None) -> list[str]:
    """Returns the metrics of a summary that are not finite."""
    return [
        f"{split} {name}"
        for split in ("test", "validation")
        for name, value in (summary or {}).get(split, {}).items()
        if not np.isfinite(value)
    ]


def last_step(run: RunFiles) -> int:
    """Returns the last known step of a run, from its attempts and its logged series."""
    attempt_steps = [attempt.get("last_step") or 0 for attempt in run.record["attempts"]]
    logged_steps = [int(series.steps[-1]) for series in run.logged.values()]
    return max([0, *attempt_steps, *logged_steps])


def _status_sentence(run: RunFiles) -> str:
    if run.summary is not None:
        return _finished_sentence(run.summary, run.logged)
    step = last_step(run)
    reason = next((f": {attempt['reason']}" for attempt in run.record["attempts"][-1:] if attempt.get("reason")), "")
    resume_sentence = "" if RESUME_TEXT in reason else ". The same command resumes the run"
    sentence = {
        "preempted": f"It was stopped at step {step:,}{reason}{resume_sentence}",
        "interrupted": f"It was interrupted at step {step:,}{reason}{resume_sentence}",
        "failed": f"It failed at step {step:,}{reason}",
        "finished": f"It finished at step {step:,}, but its summary.json is missing",
        "running": f"It is running, at step {step:,}",
    }.get(run.record["status"], f"Its status is {run.record['status']}, at step {step:,}")
    if run.is_gone:
        sentence = f"Its process is gone, without a message, at step {step:,}. The same command resumes the run"
    return f"{sentence}{_progress_clause(run.logged)}."


def _finished_sentence(summary: RunSummary, logged: Mapping[str, Series]) -> str:
    name, steps = summary["headline"], pluralize(summary["steps"], "step")
    validation = f"{format_value(summary['validation'][name])} on validation{_best_clause(name, logged)}"
    if not summary["test"]:
        return f"It finished after {steps}: {name} {validation}. The test split was not used."
    interval = summary.get("intervals", {}).get(name)
    interval_text = f" (95% interval {format_value(interval[0])} to {format_value(interval[1])})" if interval else ""
    test = f"{format_value(summary['test'][name])} on the test split{interval_text}"
    return f"It finished after {steps}: {name} {test}, {validation}."


def _progress_clause(logged: Mapping[str, Series]) -> str:
    name = next((headline.name for headline in HEADLINE.values() if f"val/{headline.name}" in logged), None)
    if name is None:
        return ""
    last_value = format_value(float(logged[f"val/{name}"].values[-1]))
    return f"; {name} was {last_value} on validation{_best_clause(name, logged)}"


def _best_clause(name: str, logged: Mapping[str, Series]) -> str:
    """Describes the best validation value of a metric. Empty if the last value is the best."""
    series, is_higher_better = logged.get(f"val/{name}"), higher_is_better(f"val/{name}")
    if series is None or is_higher_better is None:
        return ""
    worst = -np.inf if is_higher_better else np.inf
    values = np.where(np.isfinite(series.values), series.values, worst)
    best_index = int(values.argmax() if is_higher_better else values.argmin())
    if values[best_index] in {values[-1], worst}:
        return ""
    return f" (best: {format_value(float(values[best_index]))} at step {int(series.steps[best_index]):,})"


def _findings_sentence(active: Sequence[Finding], has_training_health: bool) -> str:
    if active:
        titles = "; ".join(f"{finding.title} ({finding.severity})" for finding in active)
        return f"TrainingHealth reported {titles}."
    return "TrainingHealth reported no problems." if has_training_health else "TrainingHealth was disabled."


def _has_training_health(settings: Mapping[str, Any]) -> bool:
    callbacks = settings.get("callbacks")
    return isinstance(callbacks, Mapping) and any(
        isinstance(callback, Mapping) and callback.get("_target_") == "stormproof.TrainingHealth"
        for callback in callbacks.values()
    )

"""What a run came to, in a sentence or three, and no more than its files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stormproof.finding import Finding, Severity
from stormproof_train.console import shown
from stormproof_train.counted import counted
from stormproof_train.evaluation.conclusions import against_constant, against_linear, conclusions
from stormproof_train.metrics import HEADLINE, higher_is_better
from stormproof_train.report.logged import Series
from stormproof_train.report.run_files import RunFiles
from stormproof_train.run.findings_file import standing

GOES_ON = "the same command goes on"
"""What a run says itself, mostly, when it is told to end."""


def verdict(run: RunFiles) -> dict[str, Any]:
    """What a run came to.

    Returns:
        ``tone``: ``good``, ``doubtful`` or ``bad``, or ``open`` where it has not ended for good; ``sentences``: how it
        ended, what of the findings stands, whether it is better than a constant and a linear model.
    """
    stands = standing(run.findings)
    compared = [] if run.evaluation is None else conclusions(run.evaluation)
    lost = ["metrics.csv is missing, so there are no curves."] if run.lacks_metrics and last_step(run) else []
    sentences = [_ending(run), _found(stands, _is_watched(run.settings)), *lost, *compared]
    broken = _not_finite(run.summary)
    if broken:
        sentences.insert(1, f"Not finite, so that nothing can be said of them: {', '.join(broken)}.")
    return {"tone": _tone(run, stands), "sentences": sentences}


def _tone(run: RunFiles, stands: Sequence[Finding]) -> str:
    critical = any(each.severity == Severity.CRITICAL for each in stands)
    if run.record["status"] == "failed" or critical or _not_finite(run.summary):
        return "bad"
    if run.record["status"] != "finished":
        return "open"
    return "doubtful" if stands or _is_doubtful(run.evaluation) else "good"


def _is_doubtful(evaluation: Mapping[str, Any] | None) -> bool:
    """Returns whether the network is not clearly better than a constant, or worse than a linear model."""
    if evaluation is None:
        return False
    constant, linear = against_constant(evaluation), against_linear(evaluation)
    return (constant is not None and not constant.better) or (linear is not None and linear.better is False)


def _not_finite(summary: Mapping[str, Any] | None) -> list[str]:
    """The numbers of a summary that are not."""
    return [
        f"{split} {name}"
        for split in ("test", "validation")
        for name, value in (summary or {}).get(split, {}).items()
        if not np.isfinite(value)
    ]


def last_step(run: RunFiles) -> int:
    """As far as a run is known to have come: by its attempts, or by what it logged."""
    told = [attempt.get("last_step") or 0 for attempt in run.record["attempts"]]
    logged = [int(series.steps[-1]) for series in run.logged.values()]
    return max([0, *told, *logged])


def _ending(run: RunFiles) -> str:
    if run.summary is not None:
        return _finished(run.summary, run.logged)
    step = last_step(run)
    reason = next((f": {each['reason']}" for each in run.record["attempts"][-1:] if each.get("reason")), "")
    goes_on = "" if GOES_ON in reason else ". The same command goes on"
    how = {
        "preempted": f"It was told to end at step {step:,}{reason}{goes_on}",
        "failed": f"It failed at step {step:,}{reason}",
        "finished": f"It finished at step {step:,}, and its summary.json is missing",
        "running": f"It runs, and is at step {step:,}",
    }.get(run.record["status"], f"Its status is {run.record['status']}, at step {step:,}")
    if run.is_gone:
        how = f"Its process is gone, without a word, at step {step:,}. The same command goes on"
    return f"{how}{_so_far(run.logged)}."


def _finished(summary: Mapping[str, Any], logged: Mapping[str, Series]) -> str:
    name, steps = summary["headline"], counted(summary["steps"], "step")
    validation = f"{shown(summary['validation'][name])} on validation{_at_best(name, logged)}"
    if not summary["test"]:
        return f"It finished after {steps}: {name} {validation}. It has left its test split unread."
    interval = summary.get("intervals", {}).get(name)
    ends = f" (95% interval {shown(interval[0])} to {shown(interval[1])})" if interval else ""
    test = f"{shown(summary['test'][name])} on the test split{ends}"
    return f"It finished after {steps}: {name} {test}, {validation}."


def _so_far(logged: Mapping[str, Series]) -> str:
    name = next((each.name for each in HEADLINE.values() if f"val/{each.name}" in logged), None)
    if name is None:
        return ""
    last = shown(float(logged[f"val/{name}"].values[-1]))
    return f"; {name} was {last} on validation{_at_best(name, logged)}"


def _at_best(name: str, logged: Mapping[str, Series]) -> str:
    """The best value of a metric on validation; nothing where that is the last one."""
    series, higher = logged.get(f"val/{name}"), higher_is_better(f"val/{name}")
    if series is None or higher is None:
        return ""
    worst = -np.inf if higher else np.inf
    values = np.where(np.isfinite(series.values), series.values, worst)
    place = int(values.argmax() if higher else values.argmin())
    if values[place] in {values[-1], worst}:
        return ""
    return f", where its best was {shown(float(values[place]))} at step {int(series.steps[place]):,}"


def _found(stands: Sequence[Finding], is_watched: bool) -> str:
    if stands:
        told = "; ".join(f"{each.title} ({each.severity})" for each in stands)
        return f"Found in training: {told}."
    return "Nothing was found to be wrong in training." if is_watched else "Nobody looked for what may be wrong in it."


def _is_watched(settings: Mapping[str, Any]) -> bool:
    callbacks = settings.get("callbacks")
    return isinstance(callbacks, Mapping) and any(
        isinstance(each, Mapping) and each.get("_target_") == "stormproof.TrainingHealth" for each in callbacks.values()
    )

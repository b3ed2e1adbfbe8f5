"""Prints the summary of a search."""

from __future__ import annotations

from collections import Counter
from typing import Any

from stormproof_train.console import format_value, print_line, print_table
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.search.records import ReportedTrial, SearchNumbers
from stormproof_train.search.report.search_page import search_page

MAX_ROWS = 20
"""Maximum number of rows. The report lists all trials."""


def print_summary(numbers: SearchNumbers) -> None:
    """Prints the table of trials and the sentences at the top of the report.

    Args:
        numbers: Result of :func:`stormproof_train.search.results.collect_numbers`.
    """
    objective_names = [objective["name"] for objective in numbers["objectives"]]
    trials = [*_rank_trials(numbers), *(trial for trial in numbers["trials"] if trial["state"] == "failed")][:MAX_ROWS]
    keys = [parameter["key"] for parameter in numbers["space"]]
    rows = [
        (
            str(trial["number"]), *(_format_value(trial["params"].get(key, "")) for key in keys),
            *(map(format_value, trial["values"]) if trial["values"] else [""] * len(objective_names)),
            f"{trial['steps']:,}",
            _describe_outcome(trial),
        )
        for trial in trials
    ]  # fmt: skip
    title = f"{numbers['name']}: trials, best first"
    print_table(title, ("trial", *keys, *objective_names, "steps", "outcome"), rows)
    if len(trials) < len(numbers["trials"]):
        print_line(f"The report lists {len(numbers['trials']) - len(trials):,} more.")
    for sentence in search_page(to_json(numbers)).sentences:
        print_line(sentence)


def explain_no_winner(numbers: SearchNumbers) -> str:
    """Explains why a search has no winner."""
    states = Counter(trial["state"] for trial in numbers["trials"])
    if states["complete"]:
        return (
            f"no trial satisfies {', '.join(numbers['constraints'])}: relax the constraints or change the search space"
        )
    counts_text = ", ".join(f"{count} {state}" for state, count in states.items()) or "none started"
    return f"no trial has completed ({counts_text}): see the reasons in the table"


def _rank_trials(numbers: SearchNumbers) -> list[ReportedTrial]:
    sign = -1 if numbers["objectives"][0]["higher_is_better"] else 1
    complete_trials = [trial for trial in numbers["trials"] if trial["state"] == "complete"]
    stopped_trials = [trial for trial in numbers["trials"] if trial["state"] in {"pruned", "paused", "running"}]
    complete_trials.sort(key=lambda trial: (not trial["feasible"], sign * _first_value(trial)))
    stopped_trials.sort(key=lambda trial: (-len(trial["curve"]), trial["number"]))
    return [*complete_trials, *stopped_trials]


def _first_value(trial: ReportedTrial) -> float:
    assert trial["values"] is not None  # the trial is complete
    return trial["values"][0]


def _describe_outcome(trial: ReportedTrial) -> str:
    if trial["state"] == "complete":
        return ""
    if trial["state"] == "failed" or not trial["reason"]:
        return f"{trial['state']}: {trial['reason'] or ''}".removesuffix(": ")
    return trial["reason"]  # states that it was stopped


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

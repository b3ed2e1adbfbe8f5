"""What a search says to a person when it has ended."""

from __future__ import annotations

from collections import Counter
from typing import Any

from stormproof_train.console import format_value, print_line, print_table
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.search.records import ReportedTrial, SearchNumbers
from stormproof_train.search.report.search_page import search_page

MAX_ROWS = 20
"""More are in the report."""


def print_summary(numbers: SearchNumbers) -> None:
    """Prints what a search has come to: the table, and the sentences that head its page.

    Args:
        numbers: as :func:`stormproof_train.search.results.collect_numbers` gives them.
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
    title = f"{numbers['name']}: trials, the best first"
    print_table(title, ("trial", *keys, *objective_names, "steps", "what became of it"), rows)
    if len(trials) < len(numbers["trials"]):
        print_line(f"{len(numbers['trials']) - len(trials):,} more are in the report.")
    for sentence in search_page(to_json(numbers)).sentences:
        print_line(sentence)


def explain_no_winner(numbers: SearchNumbers) -> str:
    """Why there is none."""
    states = Counter(trial["state"] for trial in numbers["trials"])
    if states["complete"]:
        return f"no trial keeps to {', '.join(numbers['constraints'])}: allow more, or search elsewhere"
    counts_text = ", ".join(f"{count} {state}" for state, count in states.items()) or "none was begun"
    return f"no trial has come to its end ({counts_text}): the table says why"


def _rank_trials(numbers: SearchNumbers) -> list[ReportedTrial]:
    sign = -1 if numbers["objectives"][0]["higher_is_better"] else 1
    complete_trials = [trial for trial in numbers["trials"] if trial["state"] == "complete"]
    stopped_trials = [trial for trial in numbers["trials"] if trial["state"] in {"pruned", "paused", "running"}]
    complete_trials.sort(key=lambda trial: (not trial["feasible"], sign * _first_value(trial)))
    stopped_trials.sort(key=lambda trial: (-len(trial["curve"]), trial["number"]))
    return [*complete_trials, *stopped_trials]


def _first_value(trial: ReportedTrial) -> float:
    assert trial["values"] is not None  # of a complete trial
    return trial["values"][0]


def _describe_outcome(trial: ReportedTrial) -> str:
    if trial["state"] == "complete":
        return ""
    if trial["state"] == "failed" or not trial["reason"]:
        return f"{trial['state']}: {trial['reason'] or ''}".removesuffix(": ")
    return trial["reason"]  # which says that it was stopped


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

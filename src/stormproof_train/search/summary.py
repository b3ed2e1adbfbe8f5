"""What a search says to a person when it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stormproof_train.console import print_table, say, shown
from stormproof_train.report.kit.json_numbers import plain
from stormproof_train.search.report.search_page import search_page

MOST_ROWS = 20
"""More are in the report."""


def tell(numbers: Mapping[str, Any]) -> None:
    """Prints what a search has come to: the table, and the sentences that head its page.

    Args:
        numbers: as :func:`stormproof_train.search.results.numbers_of` gives them.
    """
    names = [each["name"] for each in numbers["objectives"]]
    told = [*_ranked(numbers), *(each for each in numbers["trials"] if each["state"] == "failed")][:MOST_ROWS]
    keys = [each["key"] for each in numbers["space"]]
    rows = [
        (
            str(each["number"]), *(_value(each["params"].get(key, "")) for key in keys),
            *(map(shown, each["values"]) if each["values"] else [""] * len(names)), f"{each['steps']:,}",
            _became(each),
        )
        for each in told
    ]  # fmt: skip
    title = f"{numbers['name']}: trials, the best first"
    print_table(title, ("trial", *keys, *names, "steps", "what became of it"), rows)
    if len(told) < len(numbers["trials"]):
        say(f"{len(numbers['trials']) - len(told):,} more are in the report.")
    for sentence in search_page(plain(numbers)).sentences:
        say(sentence)


def no_winner(numbers: Mapping[str, Any]) -> str:
    """Why there is none."""
    states = Counter(each["state"] for each in numbers["trials"])
    if states["complete"]:
        return f"no trial keeps to {', '.join(numbers['constraints'])}: allow more, or search elsewhere"
    told = ", ".join(f"{count} {state}" for state, count in states.items()) or "none was begun"
    return f"no trial has come to its end ({told}): the table says why"


def _ranked(numbers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sign = -1 if numbers["objectives"][0]["higher_is_better"] else 1
    complete = [each for each in numbers["trials"] if each["state"] == "complete"]
    stopped = [each for each in numbers["trials"] if each["state"] in {"pruned", "paused", "running"}]
    complete.sort(key=lambda each: (not each["feasible"], sign * each["values"][0]))
    stopped.sort(key=lambda each: (-len(each["curve"]), each["number"]))
    return [*complete, *stopped]


def _became(trial: Mapping[str, Any]) -> str:
    if trial["state"] == "complete":
        return ""
    if trial["state"] == "failed" or not trial["reason"]:
        return f"{trial['state']}: {trial['reason'] or ''}".removesuffix(": ")
    return trial["reason"]  # which says that it was stopped


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

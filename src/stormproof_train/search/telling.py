"""What a search says to a person when it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stormproof_train.console import print_table, say, shown


def tell(numbers: Mapping[str, Any], folder: Path) -> None:
    """Prints what a search has come to.

    Args:
        numbers: as :func:`stormproof_train.search.numbers.numbers_of` gives them.
        folder: of the search.
    """
    names = [each["name"] for each in numbers["objectives"]]
    told = [*_ranked(numbers), *(each for each in numbers["trials"] if each["state"] == "failed")][:20]
    keys = [each["key"] for each in numbers["space"]]
    rows = [
        (
            str(each["number"]), *(_value(each["params"].get(key, "")) for key in keys),
            *(map(shown, each["values"]) if each["values"] else [""] * len(names)), f"{each['steps']:,}",
            _became(each),
        )
        for each in told
    ]  # fmt: skip
    title = f"{numbers['name']}: {len(numbers['trials'])} trials, {numbers['totals']['steps']:,} steps, the best first"
    print_table(title, ("trial", *keys, *names, "steps", "what became of it"), rows)
    if len(told) < len(numbers["trials"]):
        say(f"{len(numbers['trials']) - len(told)} more are in the report")
    for sentence in sentences(numbers):
        say(sentence)
    say(f"report: {folder / 'report.html'}")


def sentences(numbers: Mapping[str, Any]) -> list[str]:
    """The answer in words."""
    if numbers["best"] is None:
        return []
    found = [f"the best on validation: trial {numbers['best']}: {' '.join(numbers['words']['winner'])}"]
    final = numbers["final"]
    if final and final["difference"] is not None:
        ends = "" if final["low"] is None else f" (95% interval {shown(final['low'])} to {shown(final['high'])}"
        p_value = "" if final["p_value"] is None else f", p = {final['p_value']:.2g}"
        found.append(
            f"on {len(final['seeds'])} fresh seeds {final['metric']} of the winner minus that of the default is "
            f"{shown(final['difference'])}{ends}{p_value}{')' if ends else ''}"
        )
    if final:
        found += [f"warning: {each['run']} failed: {each['reason']}" for each in final["failed"]]
    if numbers["random"]:
        reached = numbers["random"]
        few = f", reckoned for {reached['pool']}" if reached["runs"] > reached["pool"] else ""
        found.append(
            f"random search would be expected to reach {shown(reached['expected'])} with as many steps "
            f"({reached['runs']:.1f} whole runs{few}; from {reached['pool']} trials drawn at random)"
        )
    if numbers["also_tested"]:
        told = ", ".join(map(str, numbers["also_tested"]))
        found.append(f"the test split has been read before, for trial {told}: the search was given more since")
    if numbers["test"]:
        told = ", ".join(f"{name} {shown(each['value'])}" for name, each in numbers["test"].items())
        found.append(f"the winner's test{', read once' * (not numbers['also_tested'])}: {told}")
    elif numbers["tested"]:
        found.append(f"warning: the winner could not be tested: {numbers['tested']}")
    return found


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

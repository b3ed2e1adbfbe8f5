"""What a search came to, in a few sentences, and no more than its numbers say."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.report.kit.duration import duration
from stormproof_train.report.kit.json_numbers import finite
from stormproof_train.search.report.trials import Search, value_text

MOST_ON_FRONT = 5
STATES = {
    "complete": "complete", "pruned": "stopped early", "failed": "failed", "running": "running", "paused": "waiting",
}  # fmt: skip


def tone(numbers: Mapping[str, Any], search: Search) -> str:
    """``open`` until it has finished, ``bad`` where it found nothing, ``good`` where its winner is clearly better."""
    if not numbers["finished"]:
        return "open"
    if not search.chosen:
        return "bad"
    return "good" if numbers["final"] and is_better(numbers["final"]) else "doubtful"


def sentences(numbers: Mapping[str, Any], search: Search) -> list[str]:
    """What was found, whether it is better than the default, what its test says, what random search would have found.

    Args:
        numbers: as :func:`stormproof_train.search.report.search_page.search_page` takes them.
        search: the same, read.
    """
    final = numbers["final"]
    told = [
        _found(numbers, search), _against_default(final) if final else _untried(numbers, search),
        _tested(numbers), _random(numbers, search), _counts(numbers, search), _constraints(numbers, search),
    ]  # fmt: skip
    return [sentence for sentence in told if sentence]


def is_better(final: Mapping[str, Any]) -> bool | None:
    """Whether the winner is better than the default: None where the interval of their difference does not say."""
    low, high = finite(final["low"]), finite(final["high"])
    if low is None or high is None or low <= 0 <= high:
        return None
    return (low > 0) == final["higher_is_better"]


def _found(numbers: Mapping[str, Any], search: Search) -> str:
    so_far = "" if numbers["finished"] else " so far"
    if not search.chosen:
        kept = " that keeps to the constraints" if numbers["constraints"] else ""
        return f"No trial{kept} has come to its end{so_far} with a finite value."
    front = f"{_front(search, so_far)} " if len(search.objectives) > 1 else ""
    best = next((trial for trial in search.trials if trial.number == search.best), None)
    if best is None:
        return front.rstrip()
    words = " ".join(numbers["words"]["winner"]) or best.words
    named = f"The best by {search.objectives[0].name}" if front else f"The best trial{so_far}"
    value = value_text(best.values[0]) or "that is not finite"
    return f"{front}{named} is trial {best.number}, with {search.objectives[0].name} {value}: {words}."


def _front(search: Search, so_far: str) -> str:
    trials = [trial for trial in search.in_order(0) if trial.number in search.chosen]
    names = ", ".join(objective.name for objective in search.objectives)
    told = "; ".join(
        f"trial {trial.number} ({', '.join(value_text(value) for value in trial.values)})"
        for trial in trials[:MOST_ON_FRONT]
    )
    more = f" and {len(trials) - MOST_ON_FRONT:,} more" if len(trials) > MOST_ON_FRONT else ""
    many = len(trials) != 1
    return (
        f"{len(trials):,} trial{'s' * many}{so_far} {'are' if many else 'is'} on the Pareto front: no other is better "
        f"in one of {names} and as good in the rest: {told}{more}."
    )


def _untried(numbers: Mapping[str, Any], search: Search) -> str:
    if not numbers["finished"] or search.best is None:
        return ""
    return "It was chosen by that value, which so is likely too good: it was not trained again on fresh seeds."


def _against_default(final: Mapping[str, Any]) -> str:
    means = [_mean(final[side]) for side in ("winner", "default")]
    if not final["seeds"] and not final["failed"]:
        return "Winner and default have not both been trained on a fresh seed yet."
    failed = len(final["failed"])
    lost = f" {failed:,} of these runs failed." if failed else ""
    if None in means or finite(final["difference"]) is None:
        return f"On fresh seeds nothing can be said of winner and default.{lost}"
    seeds = len(final["seeds"])
    return (
        f"On {seeds} fresh seed{'s' * (seeds != 1)} {final['metric']} is {value_text(means[0])} with the winner and "
        f"{value_text(means[1])} with the default, on average: winner minus default is {_difference(final)}.{lost}"
    )


def _difference(final: Mapping[str, Any]) -> str:
    low, high, p_value = (finite(final[key]) for key in ("low", "high", "p_value"))
    told = value_text(final["difference"])
    if low is None or high is None:
        return f"{told}, which may be chance, as there are too few seeds for an interval"
    p_told = "" if p_value is None else f", p = {p_value:.2g}"
    verdict = {
        True: "the winner is better",
        False: "the winner is worse",
        None: "no difference that these seeds could show",
    }[is_better(final)]
    doubt = "" if final["samples_known"] else ", as if the seeds had no samples in common"
    return f"{told} (95% interval {value_text(low)} to {value_text(high)}{p_told}{doubt}): {verdict}"


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for each in values if (value := finite(each)) is not None]
    return statistics.fmean(known) if known else None


def _tested(numbers: Mapping[str, Any]) -> str:
    if not numbers["test"]:
        return f"The winner could not be tested: {numbers['tested']}." if numbers["tested"] else ""
    told = []
    for name, each in numbers["test"].items():
        low, high = finite(each["low"]), finite(each["high"])
        ends = (
            f" (95% interval {value_text(low)} to {value_text(high)})" if low is not None and high is not None else ""
        )
        told.append(f"{name} {value_text(finite(each['value'])) or 'not finite'}{ends}")
    run = f", by {numbers['tested']}" if numbers["tested"] else ""
    before = ", ".join(f"trial {each}" for each in numbers["also_tested"])
    once = f"for the winner, and before the search was given more for {before}" if before else "once, for the winner"
    return f"The test split was read {once}{run}: {', '.join(told)}."


def _random(numbers: Mapping[str, Any], search: Search) -> str:
    random = numbers["random"]
    expected = finite(random["expected"]) if random else None
    if not random or expected is None:
        return ""
    early = f", {random['stopped_early']:,} of which were stopped early" if random["stopped_early"] else ""
    objective = search.objectives[0]
    best = next((trial.values[0] for trial in search.in_order(0) if trial.feasible), None)
    compared = ""
    if best is not None:
        is_ahead = objective.as_loss(best) < objective.as_loss(expected)
        compared = f": the search did {'better' if is_ahead else 'no better'}, with {value_text(best)}"
    as_many = f"as many steps ({random['steps']:,}, enough for {random['runs']:.3g} runs)"
    if random["runs"] > random["pool"]:  # more draws would tell of these few alone
        as_many = f"{random['pool']:,} runs of the {random['runs']:.3g} that the steps are enough for"
    return (
        f"Random search with {as_many} would be expected to reach {objective.name} {value_text(expected)}, reckoned "
        f"from {random['pool']:,} random trials{early}{compared}."
    )


def _counts(numbers: Mapping[str, Any], search: Search) -> str:
    states = Counter(trial.state for trial in search.trials)
    each = ", ".join(f"{states[state]:,} {told}" for state, told in STATES.items() if states[state])
    totals = numbers["totals"]
    gpu = f", {totals['gpu_hours']:,.3g} GPU hours" if totals["gpu_hours"] else ""
    many = len(search.trials) != 1
    pruner = "none stopped early" if numbers["pruner"] == "none" else f"stopped early by {numbers['pruner']}"
    return (
        f"{len(search.trials):,} trial{'s' * many}{f' ({each})' if each else ''}, proposed by {numbers['sampler']}, "
        f"{pruner}: {totals['steps']:,} steps, {duration(totals['seconds'])}{gpu}."
    )


def _constraints(numbers: Mapping[str, Any], search: Search) -> str:
    broken = sum(not trial.feasible for trial in search.trials)
    rules = f" ({', '.join(numbers['constraints'])})" if numbers["constraints"] else ""
    if not broken:
        return f"No trial breaks a constraint{rules}." if rules else ""
    return f"{broken:,} trial{'s' * (broken != 1)} break{'s' * (broken == 1)} a constraint{rules}."

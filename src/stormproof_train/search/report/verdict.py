"""States the outcome of a search in a few sentences, using only its numbers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stormproof_train.report.kit.duration import format_duration
from stormproof_train.report.kit.json_numbers import finite_or_none
from stormproof_train.search.records import SearchNumbers, WinnerComparison
from stormproof_train.search.report.search_info import SearchInfo, format_objective

MAX_FRONT_TRIALS = 5
STATE_LABELS = {
    "complete": "complete", "pruned": "stopped early", "failed": "failed", "running": "running", "paused": "paused",
}  # fmt: skip


def tone(numbers: SearchNumbers, search: SearchInfo) -> str:
    """Returns ``open`` before the end, ``bad`` without a best trial, ``good`` if the winner is clearly better.

    Otherwise returns ``doubtful``.
    """
    if not numbers["finished"]:
        return "open"
    if not search.best_trial_numbers:
        return "bad"
    return "good" if numbers["final"] and is_winner_better(numbers["final"]) else "doubtful"


def sentences(numbers: SearchNumbers, search: SearchInfo) -> list[str]:
    """Describes the best trial, its comparison with the default, its test and the comparison with random search.

    Args:
        numbers: Content of ``answer.json``.
        search: The same numbers, converted.
    """
    final = numbers["final"]
    paragraphs = [
        _describe_best(numbers, search),
        _compare_with_default(final) if final else _describe_selection_bias(numbers, search),
        _describe_test(numbers), _compare_with_random_search(numbers, search), _describe_counts(numbers, search),
        _describe_constraints(numbers, search),
    ]  # fmt: skip
    return [sentence for sentence in paragraphs if sentence]


def is_winner_better(final: WinnerComparison) -> bool | None:
    """Returns True if the winner is better than the default, or None if the interval of the difference contains 0."""
    low, high = finite_or_none(final["low"]), finite_or_none(final["high"])
    if low is None or high is None or low <= 0 <= high:
        return None
    return (low > 0) == final["higher_is_better"]


def _describe_best(numbers: SearchNumbers, search: SearchInfo) -> str:
    suffix = "" if numbers["finished"] else " so far"
    if not search.best_trial_numbers:
        condition = " that satisfies the constraints" if numbers["constraints"] else ""
        return f"No trial{condition} has completed{suffix} with a finite value."
    front_sentence = f"{_describe_front(search, suffix)} " if len(search.objectives) > 1 else ""
    best_trial = next((trial for trial in search.trials if trial.number == search.best), None)
    if best_trial is None:
        return front_sentence.rstrip()
    overrides = " ".join(numbers["overrides"]["winner"]) or best_trial.overrides
    subject = f"The best by {search.objectives[0].name}" if front_sentence else f"The best trial{suffix}"
    value = format_objective(best_trial.values[0]) or "that is not finite"
    return (
        f"{front_sentence}{subject} is trial {best_trial.number}, with {search.objectives[0].name} "
        f"{value}: {overrides}."
    )


def _describe_front(search: SearchInfo, suffix: str) -> str:
    trials = [trial for trial in search.ranked_trials(0) if trial.number in search.best_trial_numbers]
    names = ", ".join(objective.name for objective in search.objectives)
    trials_text = "; ".join(
        f"trial {trial.number} ({', '.join(format_objective(value) for value in trial.values)})"
        for trial in trials[:MAX_FRONT_TRIALS]
    )
    remainder = f" and {len(trials) - MAX_FRONT_TRIALS:,} more" if len(trials) > MAX_FRONT_TRIALS else ""
    is_plural = len(trials) != 1
    return (
        f"{len(trials):,} trial{'s' * is_plural}{suffix} {'are' if is_plural else 'is'} on the Pareto front: no other "
        f"trial is better in one of {names} and as good in the rest: {trials_text}{remainder}."
    )


def _describe_selection_bias(numbers: SearchNumbers, search: SearchInfo) -> str:
    if not numbers["finished"] or search.best is None:
        return ""
    return "It was selected by this value, which is likely too optimistic, because no fresh seeds were trained."


def _compare_with_default(final: WinnerComparison) -> str:
    means = [_finite_mean(final[side]) for side in ("winner", "default")]
    if not final["seeds"] and not final["failed"]:
        return "No fresh seed has finished for both winner and default yet."
    num_failed = len(final["failed"])
    failure_note = f" {num_failed:,} of these runs failed." if num_failed else ""
    if None in means or finite_or_none(final["difference"]) is None:
        return f"Winner and default cannot be compared on fresh seeds.{failure_note}"
    num_seeds = len(final["seeds"])
    return (
        f"On {num_seeds} fresh seed{'s' * (num_seeds != 1)}, the mean {final['metric']} is "
        f"{format_objective(means[0])} with the winner and {format_objective(means[1])} with the default: winner minus "
        f"default is {_describe_difference(final)}.{failure_note}"
    )


def _describe_difference(final: WinnerComparison) -> str:
    low, high, p_value = (finite_or_none(final[key]) for key in ("low", "high", "p_value"))
    text = format_objective(final["difference"])
    if low is None or high is None:
        return f"{text}, possibly by chance, because there are too few seeds for an interval"
    p_text = "" if p_value is None else f", p = {p_value:.2g}"
    verdict = {
        True: "the winner is better",
        False: "the winner is worse",
        None: "no significant difference on these seeds",
    }[is_winner_better(final)]
    doubt = "" if final["samples_known"] else ", assuming that the seeds share no samples"
    return f"{text} (95% interval {format_objective(low)} to {format_objective(high)}{p_text}{doubt}): {verdict}"


def _finite_mean(values: Sequence[Any]) -> float | None:
    finite_values = [value for raw_value in values if (value := finite_or_none(raw_value)) is not None]
    return statistics.fmean(finite_values) if finite_values else None


def _describe_test(numbers: SearchNumbers) -> str:
    if not numbers["test"]:
        return f"The winner could not be tested: {numbers['tested']}." if numbers["tested"] else ""
    phrases = []
    for name, interval in numbers["test"].items():
        low, high = finite_or_none(interval["low"]), finite_or_none(interval["high"])
        interval_text = (
            f" (95% interval {format_objective(low)} to {format_objective(high)})"
            if low is not None and high is not None
            else ""
        )
        phrases.append(f"{name} {format_objective(finite_or_none(interval['value'])) or 'not finite'}{interval_text}")
    run_note = f", by {numbers['tested']}" if numbers["tested"] else ""
    earlier_trials = ", ".join(f"trial {number}" for number in numbers["also_tested"])
    occasion = (
        f"for the winner, and earlier, before the limits were raised, for {earlier_trials}"
        if earlier_trials
        else "once, for the winner"
    )
    return f"The test split was used {occasion}{run_note}: {', '.join(phrases)}."


def _compare_with_random_search(numbers: SearchNumbers, search: SearchInfo) -> str:
    random_search = numbers["random"]
    expected_best = finite_or_none(random_search["expected"]) if random_search else None
    if not random_search or expected_best is None:
        return ""
    early_note = (
        f", {random_search['stopped_early']:,} of which were stopped early" if random_search["stopped_early"] else ""
    )
    objective = search.objectives[0]
    best_value = next((trial.values[0] for trial in search.ranked_trials(0) if trial.is_feasible), None)
    comparison = ""
    if best_value is not None:
        is_ahead = objective.as_loss(best_value) < objective.as_loss(expected_best)
        comparison = f": the search was {'better' if is_ahead else 'not better'}, with {format_objective(best_value)}"
    effort = f"as many steps ({random_search['steps']:,}, enough for {random_search['runs']:.3g} runs)"
    if random_search["runs"] > random_search["pool"]:  # more draws would depend only on the best of them
        effort = f"{random_search['pool']:,} of the {random_search['runs']:.3g} runs that fit into these steps"
    return (
        f"Random search with {effort} would be expected to reach {objective.name} {format_objective(expected_best)}, "
        f"estimated from {random_search['pool']:,} random trials{early_note}{comparison}."
    )


def _describe_counts(numbers: SearchNumbers, search: SearchInfo) -> str:
    states = Counter(trial.state for trial in search.trials)
    breakdown = ", ".join(f"{states[state]:,} {label}" for state, label in STATE_LABELS.items() if states[state])
    totals = numbers["totals"]
    gpu_text = f", {totals['gpu_hours']:,.3g} GPU hours" if totals["gpu_hours"] else ""
    is_plural = len(search.trials) != 1
    pruner_text = "none stopped early" if numbers["pruner"] == "none" else f"stopped early by {numbers['pruner']}"
    return (
        f"{len(search.trials):,} trial{'s' * is_plural}{f' ({breakdown})' if breakdown else ''}, proposed by "
        f"{numbers['sampler']}, {pruner_text}: {totals['steps']:,} steps, "
        f"{format_duration(totals['seconds'])}{gpu_text}."
    )


def _describe_constraints(numbers: SearchNumbers, search: SearchInfo) -> str:
    num_infeasible = sum(not trial.is_feasible for trial in search.trials)
    rules_text = f" ({', '.join(numbers['constraints'])})" if numbers["constraints"] else ""
    if not num_infeasible:
        return f"No trial violates a constraint{rules_text}." if rules_text else ""
    return (
        f"{num_infeasible:,} trial{'s' * (num_infeasible != 1)} violate{'s' * (num_infeasible == 1)} a "
        f"constraint{rules_text}."
    )

"""Collects the results of a search as plain values, from which report and table are built."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from stormproof_train.config.redaction import redact_override
from stormproof_train.search.final_evaluation import DEFAULT, FinalEvaluation, FinalRun
from stormproof_train.search.objectives import Objective
from stormproof_train.search.pruner import TrialPruner
from stormproof_train.search.records import (
    FailedRun,
    PairedTest,
    RandomSearchRecord,
    ReportedTrial,
    SearchNumbers,
    WinnerComparison,
)
from stormproof_train.search.rungs import TrialStatus
from stormproof_train.search.samplers import count_random_trials
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Space, format_overrides
from stormproof_train.search.trials import TrialRecord, TrialStore, trial_status

MIN_RANDOM_TRIALS = 10
"""Minimum number of random trials for an estimate of random search."""


def collect_numbers(
    name: str,
    settings: Settings,
    space: Space,
    trials: TrialStore,
    pruner: TrialPruner,
    final_evaluation: FinalEvaluation,
    fixed_overrides: Sequence[str],
) -> SearchNumbers:
    """Collects the numbers of a search."""
    records = [record for record in trials.records() if record.state != "waiting" and not record.is_duplicate]
    front = trials.pareto_front() if len(settings.all_objectives) > 1 else []
    winner = select_winner(records, settings, front)
    final_results = final_evaluation.collect_results(winner) if winner else {}
    test_result = final_results.get("test")
    num_expected = len(final_evaluation.list_runs(winner)) + 1 if winner else 0  # fresh seeds and the test
    is_finished = not any(record.state == "running" for record in records) and len(final_results) == num_expected
    overrides = [redact_override(override.lstrip("+")) for override in fixed_overrides]
    return {
        "name": name,
        "finished": is_finished,
        "objectives": [
            {"name": objective.name, "higher_is_better": objective.higher_is_better}
            for objective in settings.all_objectives
        ],
        "constraints": [str(constraint) for constraint in settings.all_constraints],
        "sampler": settings.sampler,
        "pruner": settings.effective_pruner,
        "rungs": list(pruner.rungs.fractions),
        "space": [parameter.as_dict() for parameter in space.parameters],
        "trials": [_describe_trial(record, settings, is_finished=is_finished) for record in records],
        "best": winner and winner.number,
        "front": [record.number for record in records if record.number in front and is_feasible(record, settings)],
        "importances": trials.importances(),
        "random": estimate_random_search(records, settings),
        "final": winner and _compare_winner(settings, final_evaluation, winner, final_results),
        "test": test_result and test_result["headline"],
        "tested": test_result and (test_result["reason"] or f"trials/trial-{winner.number:04d}" if winner else None),
        "also_tested": [
            number for number in trials.tested_trial_numbers() if winner is None or number != winner.number
        ],
        "overrides": {
            "winner": [*overrides, *(format_overrides(winner.params) if winner else [])],
            "default": overrides,
        },
        "totals": {
            "steps": sum(record.notes.get("steps", 0) for record in records),
            "seconds": sum(record.notes.get("seconds", 0.0) for record in records),
            "gpu_hours": sum(record.notes.get("gpu_seconds", 0.0) for record in records) / 3600,
        },
    }


def _compare_winner(
    settings: Settings, final_evaluation: FinalEvaluation, winner: TrialRecord, results: Mapping[str, Any]
) -> WinnerComparison | None:
    """Compares the winner with the default. Returns None without fresh seeds."""
    validation_objectives = (candidate for candidate in settings.all_objectives if candidate.name.startswith("val/"))
    objective = next(validation_objectives, Objective("val/loss", higher_is_better=False))
    samples = winner.notes.get("samples")
    return (
        compare_with_default(final_evaluation.list_runs(winner), results, objective, samples)
        if settings.final_seeds
        else None
    )


def _describe_trial(record: TrialRecord, settings: Settings, *, is_finished: bool) -> ReportedTrial:
    notes = record.notes
    # Trials that are still paused at the end resume only if the limits are raised.
    is_stopped = is_finished and record.state == "paused"
    reason = str(notes.get("reason")).replace("paused", "stopped") if is_stopped else notes.get("reason")
    length = notes.get("length") or 0
    curve = [[fraction, round(fraction * length), value] for fraction, value in sorted(record.curve.items())]
    return {
        "number": record.number,
        "state": "pruned" if is_stopped else record.state,
        "params": dict(record.params),
        "values": None if record.values is None else list(record.values),
        "feasible": is_feasible(record, settings),
        "curve": curve,
        "steps": notes.get("steps", 0),
        "seconds": notes.get("seconds", 0.0),
        "start": record.start and record.start.isoformat(timespec="seconds"),
        "end": record.end.isoformat(timespec="seconds") if record.end else notes.get("paused_at"),
        "reason": reason,
        "run": f"trials/trial-{record.number:04d}",
    }


def estimate_random_search(records: Sequence[TrialRecord], settings: Settings) -> RandomSearchRecord | None:
    """Estimates the result of random search with the same number of steps.

    Returns None for random search without early stopping, several objectives, or fewer than 10 random trials.
    """
    (objective, *further_objectives) = settings.all_objectives
    if further_objectives:
        return None
    statuses = [_final_status(record, objective) for record in records if record.values is not None or record.curve]
    complete_records = [record for record in records if record.state == "complete" and record.notes.get("steps")]
    num_random = count_random_trials(settings)
    random_numbers = {record.number for record in records[:num_random]}
    pool = [status for status in statuses if status.number in random_numbers]
    is_model_based = num_random is not None and len(records) > num_random
    has_pruned_trials = any(record.state == "pruned" for record in records)
    if not complete_records or len(pool) < MIN_RANDOM_TRIALS or not (is_model_based or has_pruned_trials):
        return None
    final_losses = extrapolate_final_losses(statuses)
    losses = [loss for status, loss in zip(statuses, final_losses, strict=True) if status.number in random_numbers]
    finite_losses = [loss for loss in losses if math.isfinite(loss)]
    if not finite_losses:
        return None
    steps = sum(record.notes.get("steps", 0) for record in records)
    runs = steps / (sum(record.notes.get("steps", 0) for record in complete_records) / len(complete_records))
    # Non-finite results count as the worst finite one. More draws than trials would measure only the best trial.
    expected_loss = expected_minimum(
        [*finite_losses, *[max(finite_losses)] * (len(losses) - len(finite_losses))], min(runs, len(losses))
    )
    return {
        "steps": steps,
        "runs": runs,
        "expected": -expected_loss if objective.higher_is_better else expected_loss,
        "pool": len(pool),
        "stopped_early": sum(not status.is_complete for status in pool),
    }


def _final_status(record: TrialRecord, objective: Objective) -> TrialStatus:
    """Returns the status of a trial with its final loss."""
    status = trial_status(record, objective.as_loss)
    final_losses = {1.0: objective.as_loss(record.values[0])} if record.values else {}
    return replace(status, losses={**status.losses, **final_losses})


def is_feasible(record: TrialRecord, settings: Settings) -> bool:
    """Returns True if a complete trial satisfies all constraints."""
    measurements = record.notes.get("measured", {})
    return all(
        constraint.name in measurements and constraint.violation(measurements) <= 0
        for constraint in settings.all_constraints
    )


def select_winner(records: Sequence[TrialRecord], settings: Settings, front: Collection[int]) -> TrialRecord | None:
    """Returns the winner, or None if no complete trial satisfies the constraints.

    Args:
        records: All trials.
        settings: Settings of the search.
        front: Numbers of the trials on the Pareto front. With several objectives, the winner is the one among them with
            the best first objective.
    """
    complete_records = [record for record in records if record.state == "complete" and is_feasible(record, settings)]
    if len(settings.all_objectives) > 1:
        complete_records = [record for record in complete_records if record.number in front]
    objective = settings.all_objectives[0]
    return min(
        complete_records,
        key=lambda record: (objective.as_loss((record.values or [float("nan")])[0]), record.number),
        default=None,
    )


def expected_minimum(values: Sequence[float], draws: float) -> float:
    """Returns the expected minimum of ``draws`` random draws from ``values``.

    Args:
        values: At least one finite value.
        draws: Number of draws. Must be positive, may be fractional.

    Example:
        >>> expected_minimum([1.0, 2.0], draws=1)
        1.5
        >>> expected_minimum([1.0, 2.0], draws=2)
        1.25
    """
    count = len(values)
    # probability that all draws are above each value
    tail_probabilities = [(1 - index / count) ** draws for index in range(count + 1)]
    return sum(
        value * (tail_probabilities[index] - tail_probabilities[index + 1])
        for index, value in enumerate(sorted(values))
    )


def extrapolate_final_losses(statuses: Sequence[TrialStatus]) -> list[float]:
    """Extrapolates the final losses of trials. Infinite if a loss is not finite.

    A trial that was stopped early is assumed to improve as the complete trials did from the same point, on median. The
    improvement is a factor if all losses are positive, otherwise a difference.

    Args:
        statuses: Statuses with at least one loss each.
    """
    complete_statuses = [status for status in statuses if status.is_complete]
    is_positive = all(loss > 0 for status in statuses for loss in status.losses.values())
    return [
        status.last_loss
        if status.is_complete
        else _extrapolate_final_loss(status, complete_statuses, by_factor=is_positive)
        for status in statuses
    ]


def _extrapolate_final_loss(status: TrialStatus, complete_statuses: Sequence[TrialStatus], *, by_factor: bool) -> float:
    last_fraction = max(status.losses)
    pairs = [
        (
            complete_status.losses[min(fraction for fraction in complete_status.losses if fraction >= last_fraction)],
            complete_status.last_loss,
        )
        for complete_status in complete_statuses
        if max(complete_status.losses) >= last_fraction
    ]
    if not pairs:
        return status.last_loss
    if by_factor:
        return status.last_loss * min(statistics.median(final_loss / loss for loss, final_loss in pairs), 1.0)
    return status.last_loss + min(statistics.median(final_loss - loss for loss, final_loss in pairs), 0.0)


def compare_with_default(
    runs: Sequence[FinalRun], results: Mapping[str, Any], objective: Objective, samples: Mapping[str, int] | None
) -> WinnerComparison:
    """Compares both as plain values.

    Args:
        runs: All final runs of the winner and of the default.
        results: Known results by name of the run.
        objective: A validation metric.
        samples: Sizes of the ``training`` and the ``validation`` split. None if unknown. The differences are then
            treated as independent, and ``samples_known`` is False.
    """
    values_by_seed: dict[int, dict[str, float]] = {}
    failures: list[FailedRun] = []
    for run in runs:
        result = results.get(run.name)
        if result is None:
            continue
        value = (result["validation"] or {}).get(objective.name.removeprefix("val/"))
        if value is None or not math.isfinite(value):
            failures.append({"run": run.name, "reason": result["reason"] or f"{objective.name} is not finite"})
        else:
            values_by_seed.setdefault(run.seed, {})[DEFAULT if run.label == DEFAULT else "winner"] = value
    pairs = {seed: pair for seed, pair in values_by_seed.items() if len(pair) == 2}
    winner_values, default_values = ([pair[label] for pair in pairs.values()] for label in ("winner", DEFAULT))
    overlap = samples["validation"] / samples["training"] if samples else 0.0
    return {
        "metric": objective.name, "higher_is_better": objective.higher_is_better, "seeds": list(pairs),
        "winner": winner_values,
        "default": default_values, "failed": failures, "samples_known": samples is not None,
        **paired_t_test(winner_values, default_values, overlap),
    }  # fmt: skip


def paired_t_test(first: Sequence[float], second: Sequence[float], overlap: float = 0.0) -> PairedTest:
    """Runs a paired t-test. At least two pairs are needed for an interval and a p-value.

    Args:
        first: One value per seed.
        second: Values to compare with, for the same seeds.
        overlap: Ratio of validation to training samples. 0 gives the plain paired t-test.

    Example:
        >>> result = paired_t_test([1.0, 2.0, 3.5], [1.5, 2.5, 3.5])
        >>> round(result["difference"], 3), round(result["p_value"], 3)
        (-0.333, 0.184)
    """
    differences = np.subtract(first, second)
    count = len(differences)
    if count < 2:
        difference = float(differences[0]) if count else None
        return {"difference": difference, "low": None, "high": None, "p_value": None}
    mean = float(differences.mean())
    standard_error = float(differences.std(ddof=1)) * math.sqrt(1 / count + overlap)
    if standard_error == 0:
        return {"difference": mean, "low": None, "high": None, "p_value": None}
    low, high = stats.t.interval(0.95, count - 1, mean, standard_error)
    p_value = float(2 * stats.t.sf(abs(mean) / standard_error, count - 1))
    return {"difference": mean, "low": float(low), "high": float(high), "p_value": p_value}

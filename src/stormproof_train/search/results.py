"""All that is to be said of a search, as plain values: the report and the table are made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stormproof_train.config.redaction import without_secret
from stormproof_train.search.best import best, is_feasible
from stormproof_train.search.final_evaluation import Final
from stormproof_train.search.objectives import Objective
from stormproof_train.search.pruner import Judge
from stormproof_train.search.random_search import as_if_trained, expected_smallest
from stormproof_train.search.rungs import Standing
from stormproof_train.search.samplers import drawn_at_random
from stormproof_train.search.seed_comparison import compared
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Space, words_of
from stormproof_train.search.trials import Record, Trials, standing

FEWEST_DRAWN = 10
"""Minimum number of random trials for an estimate of random search."""


def numbers_of(
    name: str, settings: Settings, space: Space, trials: Trials, judge: Judge, final: Final, fixed: Sequence[str]
) -> dict[str, Any]:
    """The numbers of a search.

    Args:
        name: of the search.
        settings: of the search.
        space: what is searched.
        trials: all.
        judge: knows the rungs.
        final: knows the runs at the end.
        fixed: words of every trial.
    """
    records = [each for each in trials.all() if each.state != "waiting" and not each.is_copy]
    front = trials.front() if len(settings.all_objectives) > 1 else []
    winner = best(records, settings, front)
    results = final.results(winner) if winner else {}
    tested = results.get("test")
    wanted = len(final.runs(winner)) + 1 if winner else 0  # the fresh seeds, and the test
    is_over = not any(each.state == "running" for each in records) and len(results) == wanted
    words = [without_secret(word.lstrip("+")) for word in fixed]
    return {
        "name": name,
        "finished": is_over,
        "objectives": [
            {"name": each.name, "higher_is_better": each.higher_is_better} for each in settings.all_objectives
        ],
        "constraints": [str(each) for each in settings.all_constraints],
        "sampler": settings.sampler,
        "pruner": settings.effective_pruner,
        "rungs": list(judge.rungs.fractions),
        "space": [each.as_dict() for each in space.parameters],
        "trials": [_trial(each, settings, is_over=is_over) for each in records],
        "best": winner and winner.number,
        "front": [each.number for each in records if each.number in front and is_feasible(each, settings)],
        "importances": trials.importances(),
        "random": random_search_result(records, settings),
        "final": winner and _compared(settings, final, winner, results),
        "test": tested and tested["headline"],
        "tested": tested and (tested["reason"] or f"trials/trial-{winner.number:04d}" if winner else None),
        "also_tested": [each for each in trials.tested() if winner is None or each != winner.number],
        "words": {"winner": [*words, *(words_of(winner.params) if winner else [])], "default": words},
        "totals": {
            "steps": sum(each.notes.get("steps", 0) for each in records),
            "seconds": sum(each.notes.get("seconds", 0.0) for each in records),
            "gpu_hours": sum(each.notes.get("gpu_seconds", 0.0) for each in records) / 3600,
        },
    }


def _compared(settings: Settings, final: Final, winner: Record, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The winner against the default; None without fresh seeds."""
    measured = (each for each in settings.all_objectives if each.name.startswith("val/"))
    objective = next(measured, Objective("val/loss", higher_is_better=False))
    samples = winner.notes.get("samples")
    return compared(final.runs(winner), results, objective, samples) if settings.final_seeds else None


def _trial(record: Record, settings: Settings, *, is_over: bool) -> dict[str, Any]:
    notes = record.notes
    # What waits at a rung when all is over goes on only if the search is given more.
    stopped = is_over and record.state == "paused"
    reason = str(notes.get("reason")).replace("paused", "stopped") if stopped else notes.get("reason")
    length = notes.get("length") or 0
    curve = [[fraction, round(fraction * length), value] for fraction, value in sorted(record.curve.items())]
    return {
        "number": record.number,
        "state": "pruned" if stopped else record.state,
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


def random_search_result(records: Sequence[Record], settings: Settings) -> dict[str, Any] | None:
    """Estimates the result of random search with the same number of steps.

    Returns None for random search without early stopping, several objectives, or fewer than 10 random trials.
    """
    (objective, *more) = settings.all_objectives
    if more:
        return None
    known = [_whole(each, objective) for each in records if each.values is not None or each.curve]
    complete = [each for each in records if each.state == "complete" and each.notes.get("steps")]
    first = drawn_at_random(settings)
    drawn = {each.number for each in records[:first]}
    pool = [each for each in known if each.number in drawn]
    learned = first is not None and len(records) > first
    stopped = any(each.state == "pruned" for each in records)
    if not complete or len(pool) < FEWEST_DRAWN or not (learned or stopped):
        return None
    expected = as_if_trained(known)
    losses = [loss for each, loss in zip(known, expected, strict=True) if each.number in drawn]
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return None
    steps = sum(each.notes.get("steps", 0) for each in records)
    runs = steps / (sum(each.notes["steps"] for each in complete) / len(complete))
    # a run that ends in nothing finite is the worst that there is; more draws than trials would tell of these alone
    smallest = expected_smallest([*finite, *[max(finite)] * (len(losses) - len(finite))], min(runs, len(losses)))
    return {
        "steps": steps,
        "runs": runs,
        "expected": -smallest if objective.higher_is_better else smallest,
        "pool": len(pool),
        "stopped_early": sum(not each.completed for each in pool),
    }


def _whole(record: Record, objective: Objective) -> Standing:
    """A trial with what it came to at its end."""
    trial = standing(record, objective.as_loss)
    end = {1.0: objective.as_loss(record.values[0])} if record.values else {}
    return replace(trial, losses={**trial.losses, **end})

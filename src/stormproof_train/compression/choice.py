"""Which artifact is recommended, and what is to be said against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stormproof_train.compression.artifact import Artifact
from stormproof_train.compression.budget import Budget
from stormproof_train.compression.settings import CostName, TargetName
from stormproof_train.evaluation.intervals import Interval


def cost(artifact: Artifact, minimize: CostName) -> float:
    """What is to be small; of the time what it is at the worse end of its interval, in times of the original's."""
    return {"latency": 1 / _guaranteed_speedup(artifact), "size": artifact.bytes, "macs": artifact.macs}[minimize]


def reaches_target(artifact: Artifact, original: Artifact, target: Mapping[TargetName, float]) -> bool:
    """Whether it is as fast, for sure, and as small and cheap as was wanted."""
    achieved_gains = guaranteed_gains(artifact, original)
    return all(achieved_gains[name] >= required for name, required in target.items())


def guaranteed_gains(artifact: Artifact, original: Artifact) -> dict[TargetName, float]:
    """How many times faster, at the worse end of the interval, smaller and cheaper than the original."""
    return {
        "speedup": _guaranteed_speedup(artifact),
        "size": original.bytes / artifact.bytes,
        "macs": original.macs / artifact.macs,
    }


def list_remarks(artifact: Artifact, original: Artifact) -> list[str]:
    """What is to be said against it, beside what it has lost."""
    if artifact.name == original.name:
        return []
    notes = [] if artifact.is_faster else ["not faster"]
    return notes if artifact.bytes < original.bytes else [*notes, "not smaller"]


def find_dominating(artifact: Artifact, candidates: Sequence[Artifact]) -> str | None:
    """The name of one that is nowhere worse and somewhere better: in what it lost, size, MACs and speed.

    Two are as fast as each other where the intervals of their speeds meet.
    """
    costs, speed = _costs(artifact), artifact.speedup["1"]
    for candidate in candidates:
        candidate_costs, candidate_speed = _costs(candidate), candidate.speedup["1"]
        is_slower, is_faster = (
            _is_significantly_below(candidate_speed, speed),
            _is_significantly_below(speed, candidate_speed),
        )
        if (
            not is_slower
            and all(
                candidate_cost <= artifact_cost
                for candidate_cost, artifact_cost in zip(candidate_costs, costs, strict=True)
            )
            and (is_faster or candidate_costs != costs)
        ):
            return candidate.name
    return None


def select_best(
    artifacts: Sequence[Artifact], budget: Budget, target: Mapping[TargetName, float], minimize: CostName
) -> Artifact | None:
    """The cheapest within the budget that reaches the target, or, where only that is given, the one that lost least.

    Where latency is to be small within a budget, that is the one that lost least of those that none surely beats in it.

    Args:
        artifacts: the original first.
        budget: what may be lost.
        target: what is wanted.
        minimize: what is to be small.

    Returns:
        None where there is none; one that is not less in what is to be small than the original is none.
    """
    original, *candidates = artifacts
    eligible_artifacts = [
        artifact
        for artifact in candidates
        if budget.allows(artifact.lost)
        and reaches_target(artifact, original, target)
        and _improves(artifact, original, minimize)
    ]
    if not eligible_artifacts:
        return None
    if not budget.told:
        return min(eligible_artifacts, key=lambda artifact: (artifact.lost.value, cost(artifact, minimize)))
    cheapest = min(eligible_artifacts, key=lambda artifact: (cost(artifact, minimize), artifact.lost.value))
    if minimize != "latency":
        return cheapest
    fastest_artifacts = [
        artifact
        for artifact in eligible_artifacts
        if not _is_significantly_below(artifact.speedup["1"], cheapest.speedup["1"])
    ]
    return min(fastest_artifacts, key=lambda artifact: (*_costs(artifact), cost(artifact, minimize)))


def _improves(artifact: Artifact, original: Artifact, minimize: CostName) -> bool:
    return artifact.is_faster if minimize == "latency" else cost(artifact, minimize) < cost(original, minimize)


def _costs(artifact: Artifact) -> tuple[float, ...]:
    return artifact.lost.value, artifact.bytes, artifact.macs


def _is_significantly_below(first: Interval, second: Interval) -> bool:
    """For sure: their intervals do not meet."""
    return (first.value if first.high is None else first.high) < (second.value if second.low is None else second.low)


def _guaranteed_speedup(artifact: Artifact) -> float:
    speed = artifact.speedup["1"]
    return speed.value if speed.low is None else speed.low

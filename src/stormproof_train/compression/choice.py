"""Selects the recommended artifact and lists the drawbacks of artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stormproof_train.compression.artifact import Artifact
from stormproof_train.compression.budget import Budget
from stormproof_train.compression.settings import CostName, TargetName
from stormproof_train.evaluation.intervals import Interval


def cost(artifact: Artifact, minimize: CostName) -> float:
    """Returns the cost to minimize. For latency, it is relative to the original, at the worse end of its interval."""
    return {"latency": 1 / _guaranteed_speedup(artifact), "size": artifact.bytes, "macs": artifact.macs}[minimize]


def reaches_target(artifact: Artifact, original: Artifact, target: Mapping[TargetName, float]) -> bool:
    """Returns True if the artifact reaches all target gains, at the worse end of their intervals."""
    achieved_gains = guaranteed_gains(artifact, original)
    return all(achieved_gains[name] >= required for name, required in target.items())


def guaranteed_gains(artifact: Artifact, original: Artifact) -> dict[TargetName, float]:
    """Returns the gains over the original in speed (at the worse end of the interval), size and MACs."""
    return {
        "speedup": _guaranteed_speedup(artifact),
        "size": original.bytes / artifact.bytes,
        "macs": original.macs / artifact.macs,
    }


def list_remarks(artifact: Artifact, original: Artifact) -> list[str]:
    """Returns the drawbacks of an artifact apart from its degradation."""
    if artifact.name == original.name:
        return []
    notes = [] if artifact.is_faster else ["not faster"]
    return notes if artifact.bytes < original.bytes else [*notes, "not smaller"]


def find_dominating(artifact: Artifact, candidates: Sequence[Artifact]) -> str | None:
    """Returns the name of an artifact that is nowhere worse and somewhere better, or None.

    Compared are degradation, size, MACs and speed. Speeds with overlapping intervals count as equal.
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
    """Returns the recommended artifact.

    With a budget, it is the cheapest artifact within the budget that reaches the target. For latency, it is the one
    with the smallest degradation among artifacts that no other one significantly exceeds in speed. Without a budget,
    it is the artifact that reaches the target with the smallest degradation.

    Args:
        artifacts: Artifacts, the original first.
        budget: Allowed degradation.
        target: Minimum gains.
        minimize: Cost to minimize.

    Returns:
        The artifact, or None if no artifact qualifies. An artifact must have a lower cost than the original.
    """
    original, *candidates = artifacts
    eligible_artifacts = [
        artifact
        for artifact in candidates
        if budget.allows(artifact.degradation)
        and reaches_target(artifact, original, target)
        and _improves(artifact, original, minimize)
    ]
    if not eligible_artifacts:
        return None
    if not budget.requested:
        return min(eligible_artifacts, key=lambda artifact: (artifact.degradation.value, cost(artifact, minimize)))
    cheapest = min(eligible_artifacts, key=lambda artifact: (cost(artifact, minimize), artifact.degradation.value))
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
    return artifact.degradation.value, artifact.bytes, artifact.macs


def _is_significantly_below(first: Interval, second: Interval) -> bool:
    """Returns True if the first interval is completely below the second one."""
    return (first.value if first.high is None else first.high) < (second.value if second.low is None else second.low)


def _guaranteed_speedup(artifact: Artifact) -> float:
    speed = artifact.speedup["1"]
    return speed.value if speed.low is None else speed.low

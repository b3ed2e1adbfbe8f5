"""Which artifact is recommended, and what is to be said against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stormproof_train.compression.artifact import Artifact
from stormproof_train.compression.budget import Budget
from stormproof_train.compression.settings import Minimized, Targeted
from stormproof_train.evaluation.intervals import Interval


def cost(artifact: Artifact, minimize: Minimized) -> float:
    """What is to be small; of the time what it is at the worse end of its interval, in times of the original's."""
    return {"latency": 1 / _surely(artifact), "size": artifact.bytes, "macs": artifact.macs}[minimize]


def reaches(artifact: Artifact, original: Artifact, target: Mapping[Targeted, float]) -> bool:
    """Whether it is as fast, for sure, and as small and cheap as was wanted."""
    gained = gains(artifact, original)
    return all(gained[name] >= wanted for name, wanted in target.items())


def gains(artifact: Artifact, original: Artifact) -> dict[Targeted, float]:
    """How many times faster, at the worse end of the interval, smaller and cheaper than the original."""
    return {
        "speedup": _surely(artifact),
        "size": original.bytes / artifact.bytes,
        "macs": original.macs / artifact.macs,
    }


def remarks(artifact: Artifact, original: Artifact) -> list[str]:
    """What is to be said against it, beside what it has lost."""
    if artifact.name == original.name:
        return []
    told = [] if artifact.is_faster else ["not faster"]
    return told if artifact.bytes < original.bytes else [*told, "not smaller"]


def beaten_by(artifact: Artifact, others: Sequence[Artifact]) -> str | None:
    """The name of one that is nowhere worse and somewhere better: in what it lost, size, MACs and speed.

    Two are as fast as each other where the intervals of their speeds meet.
    """
    own, speed = _of(artifact), artifact.speedup["1"]
    for other in others:
        its, its_speed = _of(other), other.speedup["1"]
        slower, faster = _is_below(its_speed, speed), _is_below(speed, its_speed)
        if not slower and all(one <= two for one, two in zip(its, own, strict=True)) and (faster or its != own):
            return other.name
    return None


def best(
    artifacts: Sequence[Artifact], budget: Budget, target: Mapping[Targeted, float], minimize: Minimized
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
    original, *others = artifacts
    fit = [
        each
        for each in others
        if budget.holds(each.lost) and reaches(each, original, target) and _gains(each, original, minimize)
    ]
    if not fit:
        return None
    if not budget.told:
        return min(fit, key=lambda each: (each.lost.value, cost(each, minimize)))
    least = min(fit, key=lambda each: (cost(each, minimize), each.lost.value))
    if minimize != "latency":
        return least
    as_fast = [each for each in fit if not _is_below(each.speedup["1"], least.speedup["1"])]
    return min(as_fast, key=lambda each: (*_of(each), cost(each, minimize)))


def _gains(artifact: Artifact, original: Artifact, minimize: Minimized) -> bool:
    return artifact.is_faster if minimize == "latency" else cost(artifact, minimize) < cost(original, minimize)


def _of(artifact: Artifact) -> tuple[float, ...]:
    return artifact.lost.value, artifact.bytes, artifact.macs


def _is_below(one: Interval, other: Interval) -> bool:
    """For sure: their intervals do not meet."""
    return (one.value if one.high is None else one.high) < (other.value if other.low is None else other.low)


def _surely(artifact: Artifact) -> float:
    speed = artifact.speedup["1"]
    return speed.value if speed.low is None else speed.low

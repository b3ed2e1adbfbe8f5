"""Which artifact is recommended, and what is to be said against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stormproof_train.compression.artifact import Artifact
from stormproof_train.compression.budget import Budget
from stormproof_train.compression.settings import Minimized, Targeted


def cost(artifact: Artifact, minimize: Minimized) -> float:
    """What is to be small; of two as fast, the smaller, and so on."""
    return {"latency": 1 / artifact.speedup["1"].value, "size": artifact.bytes, "macs": artifact.macs}[minimize]


def reaches(artifact: Artifact, original: Artifact, target: Mapping[Targeted, float]) -> bool:
    """Whether it is as fast, small and cheap as was wanted."""
    gained = gains(artifact, original)
    return all(gained[name] >= wanted for name, wanted in target.items())


def gains(artifact: Artifact, original: Artifact) -> dict[Targeted, float]:
    """How many times faster, smaller and cheaper than the original."""
    return {
        "speedup": artifact.speedup["1"].value,
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
    """The name of one that is nowhere worse and somewhere better: in what it lost, size, MACs and latency."""
    own = _of(artifact)
    for other in others:
        its = _of(other)
        if its != own and all(one <= two for one, two in zip(its, own, strict=True)):
            return other.name
    return None


def best(
    artifacts: Sequence[Artifact], budget: Budget, target: Mapping[Targeted, float], minimize: Minimized
) -> Artifact | None:
    """The cheapest within the budget that reaches the target, or, where only that is given, the one that lost least.

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
    return min(fit, key=lambda each: (cost(each, minimize), each.lost.value))


def _gains(artifact: Artifact, original: Artifact, minimize: Minimized) -> bool:
    return artifact.is_faster if minimize == "latency" else cost(artifact, minimize) < cost(original, minimize)


def _of(artifact: Artifact) -> tuple[float, ...]:
    return artifact.lost.value, artifact.bytes, artifact.macs, 1 / artifact.speedup["1"].value

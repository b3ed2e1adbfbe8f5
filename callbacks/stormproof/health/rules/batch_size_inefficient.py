"""Rule for batches that are far smaller or larger than the noise scale of the gradient."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.gradients.measurement import noise_scale_of_usual_batches
from stormproof.gradients.noise_scale import MIN_ESTIMATES, batch_size_advice
from stormproof.health.measures.progress import LATE_RUN_REQUIREMENT, is_late
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a batch size far from the noise scale. The severity is INFO because memory also limits the batch size.

    The rule abstains unless the gradient is accumulated or averaged over ranks.
    """
    measured = [entry for entry in record.gradients.measurements if entry.noise is not None and entry.batch_size]
    if not measured:
        return
    if not is_late(record) or len(measured) < MIN_ESTIMATES:
        yield NotEnoughEvidence(
            f"{MIN_ESTIMATES} estimates of the noise scale (has {len(measured)}) and {LATE_RUN_REQUIREMENT}"
        )
        return
    scale, batch_size = noise_scale_of_usual_batches(measured)
    if scale is None or batch_size is None:
        return
    advice = batch_size_advice(scale, batch_size)
    if advice is not None:
        evidence = {"batch_size": float(batch_size), "noise_scale": scale}
        yield Finding(Problem.BATCH_SIZE_INEFFICIENT, Severity.INFO, "", 0, record.step, evidence, advice)


RULE = Rule(Problem.BATCH_SIZE_INEFFICIENT, check, needs=frozenset({"gradients"}))

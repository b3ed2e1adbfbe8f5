"""Rule for batches that are far smaller or larger than the noise scale of the gradient."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.gradients.measurement import noise_scale_of_usual_batches
from stormproof.gradients.noise_scale import MIN_ESTIMATES
from stormproof.health.measures.progress import LATE_RUN_REQUIREMENT, is_late
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule

MIN_RATIO = 10.0
"""Minimum ratio of the noise scale and the batch size. Within this factor, both affect the number of steps."""


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
    if scale is None or not batch_size or 1 / MIN_RATIO < scale / batch_size < MIN_RATIO:
        return
    yield Finding(
        Problem.BATCH_SIZE_INEFFICIENT,
        Severity.INFO,
        "",
        0,
        record.step,
        {"batch_size": float(batch_size), "noise_scale": scale},
        "Larger batches reduce the number of steps almost in proportion, if the learning rate is raised with them."
        if scale > batch_size
        else f"Batches of about {scale:.2g} samples need almost as few steps, and fewer samples in total.",
    )


RULE = Rule(Problem.BATCH_SIZE_INEFFICIENT, check, needs=frozenset({"gradients"}))

"""Whether a loss jumped out of what it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from stormproof.divergence.spike_detector import SpikeDetector
from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record

TIMES, BEFORE = 10.0, 32
"""A loss of so many times all of so many before, and above the first ones, has jumped, whatever comes after."""
STAYS = 20
"""Batches for which a loss has stayed above to have jumped for good."""


def find_spike(record: Record) -> Iterator[Finding]:
    """The loss jumped: and stayed there, or beyond all that it was."""
    losses = list(record.recent)
    if not record.one_loss or len(losses) <= BEFORE:
        return
    detector, largest = SpikeDetector(), -math.inf
    for number, (step, loss) in enumerate(losses):
        if not math.isfinite(loss):
            return
        before = detector.spike(loss)
        if before is None:
            detector.add(loss)
            largest = max(largest, loss)
            continue
        after = [each for _, each in losses[number : number + STAYS]]
        stays = len(after) == STAYS and median(after[STAYS // 2 :]) > 2 * before
        beyond = number >= BEFORE and loss > TIMES * max(largest, 0.0) and loss > max(record.first)
        if not all(map(math.isfinite, after)) or (len(after) < STAYS and not beyond):
            return
        if stays or beyond:
            yield Finding(
                Problem.LOSS_SPIKE,
                Severity.WARNING,
                "",
                step,
                record.step,
                {"loss": loss, "median_before": before, "largest_before": largest, "median_since": median(after)},
                "lower lr, or clip: Trainer(gradient_clip_val=1.0); DivergenceGuard() goes back by itself"
                if stays
                else "look at that batch: are its samples in other units, or its targets wrong? If it stays there, "
                "lower lr",
            )
            return

"""Whether a loss jumped out of what it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from stormproof.divergence.spike_detector import SpikeDetector
from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record

SPIKE_FACTOR, MIN_BATCHES = 10.0, 32
"""A loss of so many times all of so many before, and above the first ones, has jumped, whatever comes after."""
SUSTAINED_BATCHES = 20
"""Batches for which a loss has stayed above to have jumped for good."""


def check_loss_spike(record: Record) -> Iterator[Finding]:
    """The loss jumped: and stayed there, or beyond all that it was."""
    losses = list(record.recent_losses)
    if not record.has_single_loss or len(losses) <= MIN_BATCHES:
        return
    detector, largest_loss = SpikeDetector(), -math.inf
    for index, (step, loss) in enumerate(losses):
        if not math.isfinite(loss):
            return
        baseline = detector.detect(loss)
        if baseline is None:
            detector.add(loss)
            largest_loss = max(largest_loss, loss)
            continue
        following_losses = [following_loss for _, following_loss in losses[index : index + SUSTAINED_BATCHES]]
        is_sustained = (
            len(following_losses) == SUSTAINED_BATCHES
            and median(following_losses[SUSTAINED_BATCHES // 2 :]) > 2 * baseline
        )
        exceeds_all = (
            index >= MIN_BATCHES and loss > SPIKE_FACTOR * max(largest_loss, 0.0) and loss > max(record.first_losses)
        )
        if not all(map(math.isfinite, following_losses)) or (
            len(following_losses) < SUSTAINED_BATCHES and not exceeds_all
        ):
            return
        if is_sustained or exceeds_all:
            yield Finding(
                Problem.LOSS_SPIKE,
                Severity.WARNING,
                "",
                step,
                record.step,
                {
                    "loss": loss,
                    "median_before": baseline,
                    "largest_before": largest_loss,
                    "median_since": median(following_losses),
                },
                "lower lr, or clip: Trainer(gradient_clip_val=1.0); DivergenceGuard() goes back by itself"
                if is_sustained
                else "look at that batch: are its samples in other units, or its targets wrong? If it stays there, "
                "lower lr",
            )
            return

"""Rule for loss spikes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from statistics import median

from stormproof.divergence.spike_detector import DEFAULT_SPIKE_FACTOR, SpikeDetector
from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule

SPIKE_FACTOR, MIN_BATCHES = 10.0, 32
"""A loss above this multiple of all losses of at least so many previous batches, and above the first losses, is a spike
even if it does not last."""
SUSTAINED_BATCHES = 20
"""Number of batches after which a higher loss is a lasting jump."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a loss that jumps and stays high, or that far exceeds all previous losses."""
    losses = list(record.losses.recent)
    if len(losses) <= MIN_BATCHES:
        yield NotEnoughEvidence(f"{MIN_BATCHES + 1} batches (has {len(losses)})")
        return
    if not record.losses.have_one_backward or not _may_contain_spike([loss for _, loss in losses]):
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
            index >= MIN_BATCHES and loss > SPIKE_FACTOR * max(largest_loss, 0.0) and loss > max(record.losses.first)
        )
        if not all(map(math.isfinite, following_losses)):
            return
        if len(following_losses) < SUSTAINED_BATCHES and not exceeds_all:
            missing = f"{SUSTAINED_BATCHES} batches since the loss rose (has {len(following_losses)})"
            yield NotEnoughEvidence(missing, is_likely=True)
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
                "Lower lr, clip the gradient with Trainer(gradient_clip_val=1.0), or roll back automatically with "
                "DivergenceGuard()."
                if is_sustained
                else "Check the inputs and targets of that batch. If the loss stays high, lower lr.",
            )
            return


def _may_contain_spike(losses: Sequence[float]) -> bool:
    """Returns whether a loss exceeds the default factor times the smallest previous loss, which every spike does."""
    minima = accumulate(losses, min)
    return any(loss > DEFAULT_SPIKE_FACTOR * minimum for loss, minimum in zip(losses[1:], minima, strict=False))


RULE = Rule(
    Problem.LOSS_SPIKE,
    check,
    explains=frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT}),
    needs=frozenset({"losses"}),
)

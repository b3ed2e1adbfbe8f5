"""Whether a loss has stopped falling long before the end of what is known of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.confidence_interval import interval
from stormproof.health.record import Record
from stormproof.health.rules.progress import against_constant, has_learned, is_late

QUARTER = 30
"""Batches of each of the last three quarters of the losses, at least."""
CHANGE = 0.01
"""The share of a loss by which it has changed, if it is not at rest."""
NOTHING = 0.1
"""The share of a constant's loss from which down there is little left to fall."""
FADED = 0.1
"""The share of the highest learning rate from which down a loss is meant to come to rest."""


def find_plateau(record: Record) -> Iterator[Finding]:
    """A loss that fell has not done so for three quarters of the losses known, at a rate that did not fade.

    That is no fault by itself: noise in the targets keeps a loss where it is, too. Losses that are compared with no
    constant may be meant to stay, as those of games.
    """
    losses = [loss for _, loss in record.recent]
    size = len(losses) // 4
    faded = any(group.lr < FADED * group.most_lr or group.is_rising for group in record.groups)
    if not is_late(record) or not record.one_loss or size < QUARTER or faded or not all(map(math.isfinite, losses)):
        return
    second, third, last = (interval(losses[start : start + size]) for start in (size, 2 * size, len(losses) - size))
    if has_learned(record) is not True or not all(_is_at_rest(before, last) for before in (second, third)):
        return
    against = against_constant(record)
    if against is None or last[0] < NOTHING * against.constant:
        return
    yield Finding(
        Problem.PLATEAU,
        Severity.INFO,
        "",
        record.recent[size][0],
        record.step,
        {"loss": last[0], "loss_then": second[0], "loss_of_the_best_constant": against.constant},
        "if that is as low as it can be, stop here; if not, lower lr now (ReduceLROnPlateau), or give the network more "
        "units or better inputs",
    )


def _is_at_rest(before: tuple[float, float], after: tuple[float, float]) -> bool:
    """Whether two means are the same, but for noise and a hundredth."""
    change = abs(before[0] - after[0])
    return change < 2 * math.hypot(before[1], after[1]) and change < CHANGE * abs(before[0])

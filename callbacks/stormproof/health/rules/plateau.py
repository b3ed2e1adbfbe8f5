"""Whether a loss has stopped falling long before the end of what is known of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.confidence_interval import mean_and_standard_error
from stormproof.health.record import Record
from stormproof.health.rules.progress import constant_baseline, has_learned, is_late

MIN_QUARTER_BATCHES = 30
"""Batches of each of the last three quarters of the losses, at least."""
MAX_CHANGE = 0.01
"""The share of a loss by which it has changed, if it is not at rest."""
NEGLIGIBLE_LOSS_SHARE = 0.1
"""The share of a constant's loss from which down there is little left to fall."""
DECAYED_LR_SHARE = 0.1
"""The share of the highest learning rate from which down a loss is meant to come to rest."""


def check_plateau(record: Record) -> Iterator[Finding]:
    """A loss that fell has not done so for three quarters of the losses known, at a rate that did not fade.

    That is no fault by itself: noise in the targets keeps a loss where it is, too. Losses that are compared with no
    constant may be meant to stay, as those of games.
    """
    losses = [loss for _, loss in record.recent_losses]
    quarter = len(losses) // 4
    is_decayed = any(group.lr < DECAYED_LR_SHARE * group.max_lr or group.is_rising for group in record.groups)
    if (
        not is_late(record)
        or not record.has_single_loss
        or quarter < MIN_QUARTER_BATCHES
        or is_decayed
        or not all(map(math.isfinite, losses))
    ):
        return
    second_quarter, third_quarter, last_quarter = (
        mean_and_standard_error(losses[start : start + quarter])
        for start in (quarter, 2 * quarter, len(losses) - quarter)
    )
    if has_learned(record) is not True or not all(
        _is_flat(previous, last_quarter) for previous in (second_quarter, third_quarter)
    ):
        return
    baseline = constant_baseline(record)
    if baseline is None or last_quarter[0] < NEGLIGIBLE_LOSS_SHARE * baseline.constant_loss:
        return
    yield Finding(
        Problem.PLATEAU,
        Severity.INFO,
        "",
        record.recent_losses[quarter][0],
        record.step,
        {"loss": last_quarter[0], "loss_then": second_quarter[0], "loss_of_the_best_constant": baseline.constant_loss},
        "if that is as low as it can be, stop here; if not, lower lr now (ReduceLROnPlateau), or give the network more "
        "units or better inputs",
    )


def _is_flat(previous: tuple[float, float], current: tuple[float, float]) -> bool:
    """Whether two means are the same, but for noise and a hundredth."""
    change = abs(previous[0] - current[0])
    return change < 2 * math.hypot(previous[1], current[1]) and change < MAX_CHANGE * abs(previous[0])

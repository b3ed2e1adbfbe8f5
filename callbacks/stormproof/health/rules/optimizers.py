"""Whether the optimizers hold what is to be trained, and move it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observers.learning_rates import FADED
from stormproof.health.record import Record
from stormproof.health.rules.dead_units import DIED, INPUTS
from stormproof.health.rules.outputs import says_the_same_from_the_start
from stormproof.health.rules.progress import (
    NO_BETTER,
    against_constant,
    expected_at_the_end,
    has_learned,
    has_risen,
    is_falling,
    is_late,
    update_ratios,
)
from stormproof.lightning.layer_names import join_names

LARGE, HUGE = 0.1, 0.3
"""Updates relative to the weights: a loss that rises with the first, or does not fall with the second, is told why."""
SMALL = 1e-3
"""Updates relative to the weights with which a loss that falls too slowly could fall faster."""
LEAST_CHANGE = 0.01
"""By so much of their size weights have to be able to change over a training, for it to be one."""
LEFT = 0.1
"""The share of a training, at its end, over which schedules let the rate fade."""
FALLEN, BLEW_UP = 0.3, 10.0
"""A loss that has fallen by this share of what it was is on its way, if it was never so many times the first one."""
LOOKS = 5
"""Steps at whose beginnings weights were the same, not to have changed."""
ZERO_FOR = 20
"""Steps with a learning rate of zero that no schedule means."""


def find_not_in_optimizer(record: Record) -> Iterator[Finding]:
    """Parameters get a gradient and are in no optimizer."""
    if record.hidden:
        yield Finding(
            Problem.NOT_IN_OPTIMIZER,
            Severity.CRITICAL,
            "parameters of no submodule",
            0,
            record.step,
            {"parameters": float(record.hidden)},
            "hold layers in nn.ModuleList or nn.ModuleDict rather than in a list or a dict: self.parameters() does not "
            "see them there",
        )
    if not record.unowned:
        return
    stale = f"; the optimizer holds {record.stale} that are none of the module's" if record.stale else ""
    yield Finding(
        Problem.NOT_IN_OPTIMIZER,
        Severity.CRITICAL if record.stale else Severity.WARNING,
        join_names(record.unowned),
        0,
        record.step,
        {"parameters": float(sum(record.unowned.values())), "strangers_in_the_optimizer": float(record.stale)},
        "give the optimizer self.parameters(), after the last layer was made or replaced; what is meant to stay as it "
        f"is takes requires_grad_(False){stale}",
    )


def find_in_two_optimizers(record: Record) -> Iterator[Finding]:
    """Parameters are in two optimizers, or twice in one."""
    if record.twice:
        yield Finding(
            Problem.IN_TWO_OPTIMIZERS,
            Severity.WARNING,
            join_names(record.twice),
            0,
            record.step,
            {"layers": float(len(record.twice))},
            "give each parameter to one optimizer, once",
        )


def find_zero_learning_rate(record: Record) -> Iterator[Finding]:
    """A group's learning rate is zero, from the start or for long."""
    for group in record.groups:
        if group.zero_since is None:
            continue
        since = record.step - group.zero_since
        left = 1.0 if record.planned is None else (record.planned - group.zero_since) / record.planned
        waits = len(record.groups) > 1 and group.most_lr == 0 and not is_late(record)  # its turn may come
        if since >= ZERO_FOR and left > LEFT and not waits:
            yield Finding(
                Problem.LEARNING_RATE_ZERO,
                Severity.CRITICAL if len(record.groups) == 1 else Severity.WARNING,
                group.name,
                group.zero_since,
                record.step,
                {"lr": group.lr, "steps": float(since)},
                "set lr above 0 in configure_optimizers; a scheduler by the step takes {'scheduler': …, 'interval': "
                "'step'}, and T_max or total_steps in the same unit",
            )


def find_too_high_a_learning_rate(record: Record) -> Iterator[Finding]:
    """The loss rises, or stays, or units die, with updates that are large beside the weights."""
    ratios = update_ratios(record)
    if record.inputs_are_bad or not ratios or not record.recent:
        return
    first, largest = max(ratios[:3]), max(ratios)
    died = any(
        place.units >= 4 and place.inputs >= INPUTS and place.dead - place.born > DIED * place.units
        for place in record.places.values()
    )
    rising = any(group.is_rising for group in record.groups)
    rises = has_risen(record)
    came_down = record.learned_more_than(FALLEN) and max(record.first) < BLEW_UP * abs(record.first[0])
    stays = has_learned(record) is False and not is_falling(record)
    if says_the_same_from_the_start(record) or not (
        (rises and largest > LARGE)
        or (stays and first > HUGE and not came_down)
        or (died and (largest > HUGE or rising) and not record.learned_more_than(0.1))
        or (died and stays and largest > LARGE)
    ):
        return
    yield Finding(
        Problem.LEARNING_RATE_TOO_HIGH,
        Severity.CRITICAL,
        record.groups[0].name if len(record.groups) == 1 else "",
        0,
        record.step,
        {
            "update_relative_to_weights": largest,
            "first_loss": fmean(record.first[:5]),
            "loss": record.recent[-1][1],
        },
        "divide lr by 10, until the first steps lower the loss",
    )


def find_too_low_a_learning_rate(record: Record) -> Iterator[Finding]:
    """Over the whole training, the weights cannot change by a hundredth of their size, and the loss does not fall."""
    ratio = max(update_ratios(record), default=0.0)
    against = against_constant(record)
    if any(group.is_rising for group in record.groups):
        yield from _warms_up_too_slowly(record)
        return
    if against is not None and against.loss < NO_BETTER * against.constant:
        return  # what is good already is trained on
    if record.step < ZERO_FOR or not record.one_loss or ratio <= 0 or not record.planned or not record.groups:
        return
    if any(group.zero_since is not None for group in record.groups) or record.learned_more_than(0.1):
        return
    end = expected_at_the_end(record)
    crawls = is_late(record) and ratio < SMALL and has_learned(record) is False and record.related is not False
    if end is not None and against is not None:
        crawls = crawls and end > NO_BETTER * against.constant
    if ratio * record.planned >= LEAST_CHANGE and not crawls:
        return
    yield Finding(
        Problem.LEARNING_RATE_TOO_LOW,
        Severity.WARNING,
        record.groups[0].name if len(record.groups) == 1 else "",
        0,
        record.step,
        {"lr": record.groups[0].lr, "update_relative_to_weights": ratio, "steps": float(record.planned)},
        "multiply lr by 10, until the loss falls from epoch to epoch",
    )


def _warms_up_too_slowly(record: Record) -> Iterator[Finding]:
    """Half of the training is over, and a learning rate is next to nothing beside what it warms up to."""
    for group in record.groups:
        cold = group.is_rising and group.lr < LEAST_CHANGE * group.base_lr
        if cold and record.planned and record.step >= record.planned / 2 and is_late(record):
            yield Finding(
                Problem.LEARNING_RATE_TOO_LOW,
                Severity.WARNING,
                group.name,
                0,
                record.step,
                {"lr": group.lr, "warms_up_to": group.base_lr, "steps": float(record.planned)},
                "warm up over fewer steps; a scheduler by the step takes {'scheduler': …, 'interval': 'step'}",
            )
            return


def find_unchanged_weights(record: Record) -> Iterator[Finding]:
    """A layer gets a gradient, its learning rate is not zero, and at the beginning of each step it is what it was."""
    if record.step - record.gradient_since < ZERO_FOR:
        return
    weights = [layers for step, layers in record.weights.items() if step >= record.gradient_since]
    if len(weights) < LOOKS or any(each.zero_since is not None for each in record.groups):
        return
    if len({each.optimizer for each in record.groups}) > 1 and record.epoch < 1:
        return  # they may take turns
    late = any(group.first_lr <= FADED * group.most_lr for group in record.groups)
    if late and record.epoch < 2:
        return  # one that began with nothing has not had its turn for long
    looks = weights[-LOOKS:] if late else weights
    still = [
        layer
        for layer, numbers in looks[-1].items()
        if layer in record.has_gradient and all(each.get(layer) == numbers for each in looks)
    ]
    if still:
        yield Finding(
            Problem.WEIGHTS_UNCHANGED,
            Severity.WARNING,
            join_names(still),
            0,
            record.step,
            {"layers": float(len(still)), "of": float(len(looks[-1])), "steps": float(record.step)},
            "is its optimizer stepped, are the weights set back, or are the updates below their precision (16 bits)?",
        )

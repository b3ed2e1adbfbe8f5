"""Templates that turn the evidence of a finding into a sentence."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from stormproof.problem import Problem

TEMPLATES: dict[str, tuple[str, ...]] = {
    Problem.NON_FINITE_DATA: ("the tensor {tensor} contains NaN or infinity (batch {batch}, step {since_step}).",),
    Problem.NON_FINITE: ("the {tensor} is NaN or infinite (batch {batch}, step {since_step}).",),
    Problem.NOT_IN_OPTIMIZER: ("no optimizer contains these {parameters:trainable parameter}.",),
    Problem.IN_TWO_OPTIMIZERS: ("the optimizers contain parameters of {layers:layer} more than once.",),
    Problem.NO_GRADIENT: (
        "no gradient reaches {layers:layer}, because {cut_by} cuts the graph.",
        "no parameter had a gradient in {steps_without_a_gradient:traced step}.",
        "the parameters of this optimizer had no gradient in {steps_of_optimizer_without_a_gradient:traced step}.",
        "the gradient of {layers_with_zero_gradient:layer} was zero in {traced_steps:traced step}.",
        "no optimizer has stepped in {batches} batches.",
        "no gradient reaches {unused_layers:unused layer} and {frozen_layers:frozen layer}.",
        "no gradient reaches {unused_layers:unused layer}.",
        "no gradient reaches {frozen_layers:frozen layer}.",
    ),
    Problem.WEIGHTS_UNCHANGED: ("the weights of {layers} of {of:layer} have not changed in {steps:step}.",),
    Problem.BATCH_SIZE_INEFFICIENT: (
        "a step uses {batch_size:sample}, but the noise scale of the gradient is {noise_scale} samples.",
    ),
    Problem.LEARNING_RATE_ZERO: ("the learning rate has been {lr} for {steps:step}, since step {since_step}.",),
    Problem.LEARNING_RATE_TOO_HIGH: (
        "updates are up to {update_relative_to_weights} times the weights. The loss is {loss} (first: {first_loss}).",
    ),
    Problem.LEARNING_RATE_TOO_LOW: (
        "with lr {lr}, updates are at most {update_relative_to_weights} times the weights over {steps:step}.",
        "the learning rate is {lr} and warms up to {warms_up_to}, although at least half of {steps:step} are done.",
    ),
    Problem.GRADIENTS_NOT_CLEARED: (
        "the gradient of the previous step was not cleared in {steps_with_old_gradients} of {steps_looked_at:step}.",
    ),
    Problem.VANISHING_GRADIENTS: ("the gradient norm is {gradient_norm}, but {other_norm} in {other_layer}.",),
    Problem.EXPLODING_GRADIENTS: ("the total gradient norm is {gradient_norm} in the first measured step.",),
    Problem.DEAD_UNITS: (
        "{dead} of {units:unit} are dead since step {since_step} ({from_the_start} at initialization).",
        "{dead_in_evaluation} of {units:unit} are dead in evaluation mode, but {dead_in_training} in training mode.",
    ),
    Problem.BATCH_NORM_STATISTICS_LAG: (
        "{dead_in_evaluation} of {units:unit} are dead in evaluation mode, but {dead_in_training} in training mode.",
        (
            "the batch statistics differ from the running statistics (distance {distance}). The validation loss is "
            "{validation}, the training loss {training}."
        ),
    ),
    Problem.SATURATED_UNITS: ("{saturated:.0%} of the outputs are saturated since step {since_step}.",),
    Problem.OUTPUT_IGNORES_INPUT: (
        "the output is the same for all samples since step {since_step} (relative spread {spread_over_samples}).",
    ),
    Problem.NO_BETTER_THAN_CONSTANT: (
        "the loss is {loss}. The best constant prediction has {loss_of_the_best_constant}.",
    ),
    Problem.DEGENERATE_TARGETS: ("the targets of all {samples:sample} are identical.",),
    Problem.TARGETS_UNRELATED_TO_INPUTS: (
        "predictions fit the targets of other samples (loss {loss_with_other_targets}) like their own (loss {loss}).",
    ),
    Problem.BROADCAST_MISMATCH: ("predictions of shape {prediction} are broadcast with targets of shape {target}.",),
    Problem.INPUT_BADLY_SCALED: (
        (
            "the input has mean {mean}, root mean square {root_mean_square} and feature standard deviations from "
            "{smallest_scale} to {largest_scale}."
        ),
    ),
    Problem.LOSS_INPUT_MISMATCH: ("{loss} expects {takes}, but receives {gets}.",),
    Problem.UNREACHABLE_TARGETS: (
        (
            "{unreachable:.0%} of targets ({lowest_target} to {highest_target}) are outside the range of the "
            "prediction, which {last_function} bounds."
        ),
        "{last_function} of a single output is constant, but the targets are {lowest_target} to {highest_target}.",
    ),
    Problem.PLATEAU: ("the loss has not fallen since step {since_step}: it was {loss_then} and is {loss}.",),
    Problem.LOSS_SPIKE: (
        "the loss jumped from {median_before} to {loss} at step {since_step}. The median since then is {median_since}.",
    ),
    Problem.OVERFITTING: (
        (
            "the validation loss rose from {best_validation} (step {since_step}) to {validation}, "
            "while the training loss fell to {training}."
        ),
    ),
    Problem.REPLICAS_DIVERGED: ("the weights of the ranks differ by {relative_difference} (relative).",),
    Problem.DATA_STARVATION: (
        "{waiting_share:.0%} of the time since step {since_step} is spent waiting, {seconds_a_batch} s per batch.",
    ),
    Problem.SLOW_RANK: (
        (
            "it takes {seconds_a_batch} s per batch, the other ranks {seconds_of_the_others} s. "
            "They wait {share_of_time_lost:.0%} of each step."
        ),
    ),
}
"""Sentences by problem. The first one whose values are all in the evidence applies. They start in lower case, because
the place and a colon usually precede them."""
SUFFIXES = {
    "strangers_in_the_optimizer": "The optimizers contain {strangers_in_the_optimizer:parameter} of other modules.",
    "last_gradient_norm": "In the last measured step it is {last_gradient_norm}.",
    "last_finite_loss": "The last finite loss was {last_finite_loss}.",
    "until_step": "Resolved by step {until_step}.",
}
"""Sentences that follow if the evidence has a key."""
MEANINGLESS_ZEROS = frozenset({"strangers_in_the_optimizer", "unreachable", "unused_layers", "frozen_layers"})
"""Evidence that no sentence mentions if it is zero."""
OTHER_LAYER_PREFIX = "gradient_norm_of_"
"""Start of an evidence key that ends with the name of a layer."""


class _SentenceFormatter(string.Formatter):
    """Formats counts without decimals, other numbers with three digits, and ``{count:noun}`` with a plural."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if not isinstance(value, int | float):
            return str(value)
        is_noun = format_spec.replace(" ", "").isalpha()
        if format_spec and not is_noun:
            return format(value, format_spec)
        number = format_number(value)
        return f"{number} {format_spec}{'' if value == 1 else 's'}" if is_noun else number


def format_number(value: float) -> str:
    """Formats an integer without decimals and any other number with three significant digits.

    Example:
        >>> format_number(24.0), format_number(0.05), format_number(2.345678)
        ('24', '0.05', '2.35')
    """
    return f"{value:.0f}" if abs(value) < 1e6 and value == int(value) else f"{value:.3g}"


def describe_evidence(problem: str, since_step: int, evidence: Mapping[str, float | str]) -> str:
    """Returns a sentence about the evidence of a finding.

    Args:
        problem: Problem of the finding.
        since_step: Number of optimizer steps before the problem began.
        evidence: Evidence of the finding. If the problem has no template that fits it, the sentence lists its keys
            and values.

    Example:
        >>> describe_evidence(Problem.LEARNING_RATE_ZERO, 5, {"lr": 0.0, "steps": 20.0})
        'the learning rate has been 0 for 20 steps, since step 5.'
    """
    values: dict[str, Any] = {"since_step": since_step}
    for name, value in evidence.items():
        if name.startswith(OTHER_LAYER_PREFIX):
            values |= {"other_layer": name.removeprefix(OTHER_LAYER_PREFIX), "other_norm": value}
        elif value != 0 or name not in MEANINGLESS_ZEROS:
            values[name] = value
    formatter = _SentenceFormatter()
    suffixes = [formatter.vformat(suffix, (), values) for name, suffix in SUFFIXES.items() if name in values]
    for template in TEMPLATES.get(problem, ()):
        try:
            return " ".join([formatter.vformat(template, (), values), *suffixes])
        except KeyError:
            continue
    items = ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else format_number(value)}"
        for name, value in evidence.items()
    )
    return f"{problem.replace('_', ' ')} since step {since_step}{f' ({items})' if items else ''}."

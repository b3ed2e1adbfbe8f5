"""Rule for a loss that receives the wrong kind of input."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observations.predictions import PredictionStats
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule

MIN_TRACES = 2
"""Minimum number of batches with the same problem."""
SQUASHING_FUNCTIONS = frozenset({"sigmoid", "softmax", "hardsigmoid"})
"""Functions with outputs from 0 to 1."""
SIGNED_TARGET_LOSSES = frozenset({"cosine_embedding_loss", "hinge_embedding_loss", "soft_margin_loss"})
"""Losses of targets -1 and 1. A target of 0 gives a wrong loss. In rankings, it may be a tie."""
MAX_MULTI_HOT_CLASSES = 50
"""Number of classes above which several classes per sample may be counts, such as of the items that a user chose."""
DOUBLE_SIGMOID = "sigmoid of sigmoid"
MIN_CERTAIN_BATCHES = 5
"""Minimum number of batches with values between 0 and 1 if the function that computed them is unknown."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a loss that receives other inputs or targets than it expects, such as probabilities instead of logits."""
    if not any(len(calls) >= MIN_TRACES for calls in record.predictions.by_loss):
        yield NotEnoughEvidence(f"{MIN_TRACES} traced steps with a known loss")
        return
    for calls in record.predictions.by_loss:
        mismatch = _find_mismatch(calls) if len(calls) >= MIN_TRACES else None
        if mismatch is not None:
            takes, gets = mismatch
            yield Finding(
                Problem.LOSS_INPUT_MISMATCH,
                Severity.WARNING,
                calls[0].layer,
                0,
                record.step,
                {"loss": calls[0].loss, "takes": takes, "gets": gets},
                _ADVICE[takes],
            )
            return


_SIGNS, _SINGLE_CLASSES = "targets of -1 and 1", "one class per sample, or probabilities"
_ADVICE = {
    "logits": "Pass the output of the last layer to the loss without softmax or sigmoid.",
    "log-probabilities": "Apply F.log_softmax over the classes, or replace F.nll_loss with F.cross_entropy on logits.",
    "probabilities": "Use F.binary_cross_entropy_with_logits on logits.",
    "log-rates": "Pass log_input=False, or remove the last activation, so that the network predicts log-rates.",
    _SIGNS: "Pass 2 * target - 1 as the target.",
    _SINGLE_CLASSES: "Use F.binary_cross_entropy_with_logits if several classes can apply to a sample.",
}


def _find_mismatch(calls: list[PredictionStats]) -> tuple[str, str] | None:
    """Returns what a loss expects and what it receives in all batches. None if they match."""
    loss_input = calls[0].loss_input
    actual_input = _DESCRIPTIONS[loss_input](calls) if loss_input in _DESCRIPTIONS else None
    if actual_input is not None:
        return loss_input, actual_input
    if _receive_zero_one_targets(calls):
        return _SIGNS, "targets of 0 and 1"
    is_multi_hot = sum(call.are_targets_multi_hot for call in calls) >= MIN_TRACES
    if is_multi_hot and calls[0].outputs <= MAX_MULTI_HOT_CLASSES:
        return _SINGLE_CLASSES, "several classes per sample"
    return None


def _describe_logits(calls: list[PredictionStats]) -> str | None:
    """Returns what a loss receives in place of logits."""
    loss, producer = calls[0].loss, calls[0].producer
    if loss == "cross_entropy" and all(call.sums_to_one for call in calls):
        return "probabilities"
    if not all(call.low >= 0 and call.high <= 1 for call in calls):
        return None
    if producer in SQUASHING_FUNCTIONS:
        return f"the output of {producer}"
    is_certain = loss == "binary_cross_entropy_with_logits" and len(calls) >= MIN_CERTAIN_BATCHES
    return "values between 0 and 1" if is_certain and not producer else None


def _describe_log_probabilities(calls: list[PredictionStats]) -> str | None:
    """Returns what a loss receives in place of log-probabilities."""
    if calls[0].outputs == 1 or any(call.logs_sum_to_one for call in calls):
        return None
    are_probabilities = all(call.sums_to_one for call in calls)
    return "probabilities" if are_probabilities else "values that are not logarithms of probabilities"


def _describe_probabilities(calls: list[PredictionStats]) -> str | None:
    """Returns what a loss receives in place of probabilities."""
    return "a sigmoid of a sigmoid" if calls[0].producer == DOUBLE_SIGMOID else None


def _describe_log_rates(calls: list[PredictionStats]) -> str | None:
    """Returns what a loss receives in place of logarithms of rates."""
    return f"the output of {calls[0].bounded_by}" if calls[0].lower_bound >= 0 else None


_DESCRIPTIONS = {
    "logits": _describe_logits,
    "log-probabilities": _describe_log_probabilities,
    "probabilities": _describe_probabilities,
    "log-rates": _describe_log_rates,
}


def _receive_zero_one_targets(calls: list[PredictionStats]) -> bool:
    """Returns whether a loss of targets -1 and 1 receives 0 and 1."""
    return (
        calls[0].loss in SIGNED_TARGET_LOSSES
        and all(call.target_low >= 0 for call in calls)
        and any(call.target_low == 0 and call.target_high == 1 for call in calls)
    )


RULE = Rule(
    Problem.LOSS_INPUT_MISMATCH,
    check,
    explains=NUMERICAL_SYMPTOMS,
    needs=frozenset({"predictions"}),
)

"""Rules for the output of the network: its shape, its range, and its dependence on the input."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import PredictionStats, Record, TracedStep

MIN_TRACES = 2
"""Minimum number of batches with the same problem."""
OUTPUT_RANGES = {
    "relu": (0.0, None), "relu_": (0.0, None), "relu6": (0.0, 6.0), "softplus": (0.0, None), "exp": (0.0, None),
    "sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
}  # fmt: skip
"""Ranges of last activations."""
SQUASHING_FUNCTIONS = frozenset({"sigmoid", "softmax", "hardsigmoid"})
DOUBLE_SIGMOID = "sigmoid of sigmoid"
MIN_CERTAIN_BATCHES = 5
"""Minimum number of batches with values between 0 and 1 if the function that computed them is unknown."""
MAX_UNREACHABLE_SHARE = 0.05
"""Maximum share of targets out of range. A few may be outliers."""
CONSTANT_SPREAD = 1e-4
"""Standard deviation over the samples, relative to the root mean square, below which predictions are constant."""


def check_broadcast_mismatch(record: Record) -> Iterator[Finding]:
    """Reports predictions and targets whose shapes torch broadcasts."""
    mismatches = [mismatch for trace in record.traces for mismatch in trace.broadcast_mismatches]
    if mismatches:
        first_mismatch = mismatches[0]
        yield Finding(
            Problem.BROADCAST_MISMATCH,
            Severity.CRITICAL,
            first_mismatch.function,
            0,
            record.step,
            {"prediction": str(first_mismatch.prediction), "target": str(first_mismatch.target)},
            "Give both the same shape with prediction.squeeze(1) or target.unsqueeze(1).",
        )


def check_loss_input_mismatch(record: Record) -> Iterator[Finding]:
    """Reports a loss that receives another kind of input than it expects, such as probabilities instead of logits."""
    for calls in record.predictions_by_loss:
        stats, actual_input = calls[0], _actual_loss_input(calls) if len(calls) >= MIN_TRACES else None
        if actual_input is not None:
            yield Finding(
                Problem.LOSS_INPUT_MISMATCH,
                Severity.WARNING,
                stats.layer,
                0,
                record.step,
                {"loss": stats.loss, "takes": stats.loss_input, "gets": actual_input},
                _ADVICE[stats.loss_input],
            )
            return


_ADVICE = {
    "logits": "Pass the output of the last layer to the loss without softmax or sigmoid.",
    "log-probabilities": "Use F.cross_entropy on logits, or F.nll_loss on F.log_softmax(logits, dim=1).",
    "probabilities": "Use F.binary_cross_entropy_with_logits on logits.",
}


def _actual_loss_input(calls: list[PredictionStats]) -> str | None:
    """Returns the kind of input that a loss receives in all batches. None if it is the expected one."""
    loss_input, loss, made_by = calls[0].loss_input, calls[0].loss, calls[0].producer
    is_unit_range = all(call.low >= 0 and call.high <= 1 for call in calls)
    if loss == "cross_entropy" and all(call.sums_to_one for call in calls):
        return "probabilities"
    if loss_input == "logits" and made_by in SQUASHING_FUNCTIONS and is_unit_range:
        return f"the output of a {made_by}"
    if (
        loss == "binary_cross_entropy_with_logits"
        and not made_by
        and is_unit_range
        and len(calls) >= MIN_CERTAIN_BATCHES
    ):
        return "values between 0 and 1"
    if loss_input == "probabilities" and made_by == DOUBLE_SIGMOID:
        return "a sigmoid of a sigmoid"
    if loss_input == "log-probabilities" and calls[0].outputs > 1 and not any(call.logs_sum_to_one for call in calls):
        sum_to_one = all(call.sums_to_one for call in calls)
        return "probabilities" if sum_to_one else "values that are not logarithms of probabilities"
    return None


def check_unreachable_targets(record: Record) -> Iterator[Finding]:
    """Reports targets outside the range of the last activation, and a softmax over a single unit, which is always 1."""
    for calls in record.predictions_by_loss:
        stats = calls[-1]
        is_single_output = stats.producer in {"softmax", "log_softmax"} and all(call.low == call.high for call in calls)
        is_out_of_range = all(call.unreachable_share > MAX_UNREACHABLE_SHARE for call in calls[-MIN_TRACES:])
        if (
            len(calls) < MIN_TRACES
            or not (is_single_output or is_out_of_range)
            or (is_single_output and stats.target_low == stats.target_high)
        ):
            continue
        yield Finding(
            Problem.UNREACHABLE_TARGETS,
            Severity.CRITICAL if is_single_output else Severity.WARNING,
            stats.layer,
            0,
            record.step,
            {
                "last_function": stats.producer,
                "unreachable": stats.unreachable_share,
                "lowest_target": stats.target_low,
                "highest_target": stats.target_high,
            },
            "Remove the activation after the last layer, or scale the targets to its range.",
        )
        return


def is_constant_from_start(record: Record) -> bool:
    """Returns whether the predictions within a batch were identical before and after the first steps."""
    spreads = [stats.spread for trace in record.traces[:3] for stats in trace.predictions[:1]]
    return len(spreads) == 3 and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)


def traces_with_constant_output(record: Record) -> list[TracedStep]:
    """Returns the last four traced steps if the predictions within each are identical, and [] otherwise."""
    late_steps = [trace for trace in record.traces if trace.step >= 5 and trace.predictions][-4:]
    spreads = [trace.predictions[0].spread for trace in late_steps]
    return (
        late_steps
        if len(late_steps) == 4 and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)
        else []
    )


def check_constant_output(record: Record) -> Iterator[Finding]:
    """Reports identical predictions for all samples of a batch."""
    late_steps = traces_with_constant_output(record)
    if late_steps:
        constant_layer = next(
            (
                call.layer
                for call in late_steps[-1].layer_calls
                if call.spread is not None and call.spread < CONSTANT_SPREAD
            ),
            "",
        )
        yield Finding(
            Problem.OUTPUT_IGNORES_INPUT,
            Severity.WARNING,
            constant_layer or late_steps[-1].predictions[0].layer,
            late_steps[0].step,
            record.step,
            {"spread_over_samples": late_steps[-1].predictions[0].spread or 0.0},
            "Check this layer for weights of zero, dead units and a constant input.",
        )

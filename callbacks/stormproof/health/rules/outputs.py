"""Whether what the network puts out fits its loss and its target, and depends on its input."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import PredictionStats, Probe, Record

MIN_PROBES = 2
"""Batches in which the same must have been seen."""
OUTPUT_RANGES = {
    "relu": (0.0, None), "relu_": (0.0, None), "relu6": (0.0, 6.0), "softplus": (0.0, None), "exp": (0.0, None),
    "sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
}  # fmt: skip
"""What a last activation can put out."""
SQUASHING_FUNCTIONS = frozenset({"sigmoid", "softmax", "hardsigmoid"})
DOUBLE_SIGMOID = "sigmoid of sigmoid"
MIN_CERTAIN_BATCHES = 5
"""Batches in which numbers have to lie between 0 and 1, where nobody knows what made them."""
MAX_UNREACHABLE_SHARE = 0.05
"""The share of targets beyond that, from which on it is no accident."""
CONSTANT_SPREAD = 1e-4
"""Predictions whose spread over the samples is below so much of their size, or of the target's spread."""


def check_broadcast_mismatch(record: Record) -> Iterator[Finding]:
    """Prediction and target have shapes that torch stretches."""
    mismatches = [mismatch for probe in record.probes for mismatch in probe.broadcast_mismatches]
    if mismatches:
        first_mismatch = mismatches[0]
        yield Finding(
            Problem.BROADCAST_MISMATCH,
            Severity.CRITICAL,
            first_mismatch.function,
            0,
            record.step,
            {"prediction": str(first_mismatch.prediction), "target": str(first_mismatch.target)},
            "give both one shape: prediction.squeeze(1), or target.unsqueeze(1)",
        )


def check_loss_input_mismatch(record: Record) -> Iterator[Finding]:
    """The loss gets something else than what it takes: what was made logits or probabilities already, or is neither."""
    for calls in record.predictions_by_loss:
        stats, actual_input = calls[0], _actual_loss_input(calls) if len(calls) >= MIN_PROBES else None
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
    "logits": "give the loss the last layer's output as it is, without softmax or sigmoid",
    "log-probabilities": "use F.cross_entropy on logits, or F.nll_loss on F.log_softmax(logits, dim=1)",
    "probabilities": "use F.binary_cross_entropy_with_logits on logits",
}


def _actual_loss_input(calls: list[PredictionStats]) -> str | None:
    """What a loss gets in all batches, where it is not what it takes."""
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
        return "numbers between 0 and 1"
    if loss_input == "probabilities" and made_by == DOUBLE_SIGMOID:
        return "a sigmoid of a sigmoid"
    if loss_input == "log-probabilities" and calls[0].outputs > 1 and not any(call.logs_sum_to_one for call in calls):
        sum_to_one = all(call.sums_to_one for call in calls)
        return "probabilities" if sum_to_one else "numbers that are no logarithms of probabilities"
    return None


def check_unreachable_targets(record: Record) -> Iterator[Finding]:
    """The last activation cannot put out the targets; or a softmax of one unit puts out 1."""
    for calls in record.predictions_by_loss:
        stats = calls[-1]
        is_single_output = stats.producer in {"softmax", "log_softmax"} and all(call.low == call.high for call in calls)
        is_out_of_range = all(call.unreachable_share > MAX_UNREACHABLE_SHARE for call in calls[-MIN_PROBES:])
        if (
            len(calls) < MIN_PROBES
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
            "leave out the activation behind the last layer, or scale the targets into its range",
        )
        return


def is_constant_from_start(record: Record) -> bool:
    """Whether the predictions of a batch were all the same before and after the first steps."""
    spreads = [stats.spread for probe in record.probes[:3] for stats in probe.predictions[:1]]
    return len(spreads) == 3 and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)


def probes_with_constant_output(record: Record) -> list[Probe]:
    """The last batches whose predictions were all the same; none where they were not in all of them."""
    late_probes = [probe for probe in record.probes if probe.step >= 5 and probe.predictions][-4:]
    spreads = [probe.predictions[0].spread for probe in late_probes]
    return (
        late_probes
        if len(late_probes) == 4 and all(spread is not None and spread < CONSTANT_SPREAD for spread in spreads)
        else []
    )


def check_constant_output(record: Record) -> Iterator[Finding]:
    """The predictions of a batch are all the same."""
    late_probes = probes_with_constant_output(record)
    if late_probes:
        constant_layer = next(
            (
                call.layer
                for call in late_probes[-1].layer_calls
                if call.spread is not None and call.spread < CONSTANT_SPREAD
            ),
            "",
        )
        yield Finding(
            Problem.OUTPUT_IGNORES_INPUT,
            Severity.WARNING,
            constant_layer or late_probes[-1].predictions[0].layer,
            late_probes[0].step,
            record.step,
            {"spread_over_samples": late_probes[-1].predictions[0].spread or 0.0},
            "look at the first layer named: are its weights zero, its units dead, its input constant?",
        )

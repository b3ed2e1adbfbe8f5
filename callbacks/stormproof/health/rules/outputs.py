"""Whether what the network puts out fits its loss and its target, and depends on its input."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import PredictionFacts, Probe, Record

PROBES = 2
"""Batches in which the same must have been seen."""
RANGES = {
    "relu": (0.0, None), "relu_": (0.0, None), "relu6": (0.0, 6.0), "softplus": (0.0, None), "exp": (0.0, None),
    "sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
}  # fmt: skip
"""What a last activation can put out."""
SQUASHES = frozenset({"sigmoid", "softmax", "hardsigmoid"})
TWICE = "sigmoid of sigmoid"
SURE = 5
"""Batches in which numbers have to lie between 0 and 1, where nobody knows what made them."""
UNREACHABLE = 0.05
"""The share of targets beyond that, from which on it is no accident."""
CONSTANT = 1e-4
"""Predictions whose spread over the samples is below so much of their size, or of the target's spread."""


def find_stretched_shapes(record: Record) -> Iterator[Finding]:
    """Prediction and target have shapes that torch stretches."""
    found = [stretched for probe in record.probes for stretched in probe.stretched]
    if found:
        first = found[0]
        yield Finding(
            Problem.SHAPES_BROADCAST,
            Severity.CRITICAL,
            first.function,
            0,
            record.step,
            {"prediction": str(first.prediction), "target": str(first.target)},
            "give both one shape: prediction.squeeze(1), or target.unsqueeze(1)",
        )


def find_loss_input_mismatch(record: Record) -> Iterator[Finding]:
    """The loss gets something else than what it takes: what was made logits or probabilities already, or is neither."""
    for seen in record.loss_calls:
        facts, got = seen[0], _got(seen) if len(seen) >= PROBES else None
        if got is not None:
            yield Finding(
                Problem.LOSS_INPUT_MISMATCH,
                Severity.WARNING,
                facts.layer,
                0,
                record.step,
                {"loss": facts.loss, "takes": facts.takes, "gets": got},
                _ADVICE[facts.takes],
            )
            return


_ADVICE = {
    "logits": "give the loss the last layer's output as it is, without softmax or sigmoid",
    "log-probabilities": "use F.cross_entropy on logits, or F.nll_loss on F.log_softmax(logits, dim=1)",
    "probabilities": "use F.binary_cross_entropy_with_logits on logits",
}


def _got(facts: list[PredictionFacts]) -> str | None:
    """What a loss gets in all batches, where it is not what it takes."""
    takes, loss, made_by = facts[0].takes, facts[0].loss, facts[0].made_by
    within = all(each.low >= 0 and each.high <= 1 for each in facts)
    if loss == "cross_entropy" and all(each.sums_to_one for each in facts):
        return "probabilities"
    if takes == "logits" and made_by in SQUASHES and within:
        return f"the output of a {made_by}"
    if loss == "binary_cross_entropy_with_logits" and not made_by and within and len(facts) >= SURE:
        return "numbers between 0 and 1"
    if takes == "probabilities" and made_by == TWICE:
        return "a sigmoid of a sigmoid"
    if takes == "log-probabilities" and facts[0].outputs > 1 and not any(each.logs_sum_to_one for each in facts):
        all_sum = all(each.sums_to_one for each in facts)
        return "probabilities" if all_sum else "numbers that are no logarithms of probabilities"
    return None


def find_unreachable_targets(record: Record) -> Iterator[Finding]:
    """The last activation cannot put out the targets; or a softmax of one unit puts out 1."""
    for seen in record.loss_calls:
        facts = seen[-1]
        alone = facts.made_by in {"softmax", "log_softmax"} and all(each.low == each.high for each in seen)
        beyond = all(each.unreachable > UNREACHABLE for each in seen[-PROBES:])
        if len(seen) < PROBES or not (alone or beyond) or (alone and facts.target_low == facts.target_high):
            continue
        yield Finding(
            Problem.HEAD_CANNOT_REACH_TARGETS,
            Severity.CRITICAL if alone else Severity.WARNING,
            facts.layer,
            0,
            record.step,
            {
                "last_function": facts.made_by,
                "unreachable": facts.unreachable,
                "lowest_target": facts.target_low,
                "highest_target": facts.target_high,
            },
            "leave out the activation behind the last layer, or scale the targets into its range",
        )
        return


def says_the_same_from_the_start(record: Record) -> bool:
    """Whether the predictions of a batch were all the same before and after the first steps."""
    first = [facts.spread for probe in record.probes[:3] for facts in probe.predictions[:1]]
    return len(first) == 3 and all(spread is not None and spread < CONSTANT for spread in first)


def ignores_input(record: Record) -> list[Probe]:
    """The last batches whose predictions were all the same; none where they were not in all of them."""
    late = [probe for probe in record.probes if probe.step >= 5 and probe.predictions][-4:]
    spreads = [probe.predictions[0].spread for probe in late]
    return late if len(late) == 4 and all(each is not None and each < CONSTANT for each in spreads) else []


def find_output_that_ignores_input(record: Record) -> Iterator[Finding]:
    """The predictions of a batch are all the same."""
    late = ignores_input(record)
    if late:
        flat = next((call.layer for call in late[-1].layers if call.spread is not None and call.spread < CONSTANT), "")
        yield Finding(
            Problem.OUTPUT_IGNORES_INPUT,
            Severity.WARNING,
            flat or late[-1].predictions[0].layer,
            late[0].step,
            record.step,
            {"spread_over_samples": late[-1].predictions[0].spread or 0.0},
            "look at the first layer named: are its weights zero, its units dead, its input constant?",
        )

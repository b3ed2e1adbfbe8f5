"""Rule for layers without a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.predictions import last_traces_with_constant_output
from stormproof.health.measures.progress import is_late
from stormproof.health.observations.gradients import OptimizerWithoutGradient
from stormproof.health.record import Record
from stormproof.health.rule import SYMPTOMS, NotEnoughEvidence, Rule
from stormproof.lightning.layer_names import join_names

MAX_ACCUMULATED_BATCHES = 64
"""Batches without an optimizer step that exceed any usual gradient accumulation. In the third epoch one is enough."""
MAX_WARM_UP_SHARE = 0.5
"""Maximum share of a run without a loss, as off-policy algorithms fill a replay buffer first, or without a gradient of
one of several optimizers, whose phase may start later."""
MIN_STEPS = 5
"""Minimum number of traced steps of an optimizer without any gradient."""
MIN_STEPS_WITH_ZERO = 8
"""Minimum number of traced steps in which the gradient of a layer is exactly zero."""
MIN_RUN_STEPS = 20
"""Minimum number of steps before a finding about gradients of zero in all layers."""
LATE_TERM_SHARE = 0.9
"""Share of the planned steps before which a term of the loss may have weight zero."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports layers that receive no gradient. Frozen and unused layers may be intended, so their severity is INFO."""
    if not record.predictions.traces:
        yield NotEnoughEvidence("a traced step")
    detached_layers = {
        layer: function
        for layer, function in record.gradients.detached_layers.items()
        if layer not in record.gradients.reached_layers
    }
    optimizers_without_gradient = _find_optimizers_without_gradient(record)
    layers_with_zero = _find_layers_with_zero_gradient(record)
    lacks_gradient = bool(optimizers_without_gradient) and not (
        record.gradients.reached_layers or record.gradients.steps_with_zero_gradient
    )
    if detached_layers:
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            join_names(detached_layers),
            0,
            record.step,
            {"layers": float(len(detached_layers)), "cut_by": ", ".join(sorted(set(detached_layers.values())))},
            "Remove .detach(), .data, .numpy(), argmax and torch.no_grad() between these layers and the loss. If the "
            "layers are frozen on purpose, set requires_grad_(False).",
        )
    elif lacks_gradient and not _may_be_warming_up(record):
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            "all layers",
            0,
            record.step,
            {"steps_without_a_gradient": float(min(optimizer.steps for optimizer in optimizers_without_gradient))},
            "Check that training_step returns the loss and that zero_grad() is not called between backward() and "
            "step().",
        )
    elif optimizers_without_gradient and not lacks_gradient:
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            join_names([layer for optimizer in optimizers_without_gradient for layer in optimizer.layers]),
            0,
            record.step,
            {
                "steps_of_optimizer_without_a_gradient": float(
                    min(optimizer.steps for optimizer in optimizers_without_gradient)
                )
            },
            "Check that the loss of this optimizer depends on its parameters without .detach(), and that zero_grad() "
            "is not called between backward() and step().",
        )
    elif layers_with_zero:
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.WARNING if record.gradients.reached_layers else Severity.CRITICAL,
            join_names(layers_with_zero),
            0,
            record.step,
            {
                "layers_with_zero_gradient": float(len(layers_with_zero)),
                "traced_steps": float(min(layers_with_zero.values())),
            },
            "Check that these layers can affect the loss. Common causes are an output multiplied by zero, two factors "
            "that both start at zero, a softmax over one entry, and predictions where the loss is flat.",
        )
    elif (
        not record.optimizers.have_stepped
        and record.batches.count >= _min_batches(record)
        and not _may_be_warming_up(record)
    ):
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            "all layers",
            0,
            0,
            {"batches": float(record.batches.count), "optimizer_steps": 0.0},
            "Return the loss from training_step. In manual optimization, call self.manual_backward(loss) and "
            "optimizer.step().",
        )
    yield from _check_unused_and_frozen(record, [] if lacks_gradient else record.gradients.unused_layers)


def _find_optimizers_without_gradient(record: Record) -> list[OptimizerWithoutGradient]:
    """Returns optimizers of unchanged layers of the module that never had a gradient.

    Another rule reports parameters of other modules. Optimizers that step in the backward pass clear gradients first.
    """
    must_be_late = bool(record.gradients.reached_layers)
    return [
        optimizer
        for optimizer in record.gradients.optimizers_without_gradient
        if optimizer.steps >= MIN_STEPS
        and optimizer.layers
        and not any(record.weights.have_changed(layer) for layer in optimizer.layers)
        and not (must_be_late and _is_before(record, MAX_WARM_UP_SHARE))
    ]


def _find_layers_with_zero_gradient(record: Record) -> dict[str, int]:
    """Returns layers whose gradient is always zero, with the number of traced steps.

    Gradients of zero are a consequence of dead units and constant outputs. If other layers have gradients, the run must
    be near its end, because a term of the loss may have weight zero at first.
    """
    layers = {
        layer: steps
        for layer, steps in record.gradients.steps_with_zero_gradient.items()
        if steps >= MIN_STEPS_WITH_ZERO
    }
    has_dead_layer = any(activity.dead == activity.units for activity in record.units.activity.values())
    if record.step < MIN_RUN_STEPS or has_dead_layer or last_traces_with_constant_output(record):
        return {}
    if not record.gradients.reached_layers:
        return layers
    if _is_before(record, LATE_TERM_SHARE):
        return {}
    late_step = LATE_TERM_SHARE * record.step
    if any(trace.step >= late_step for trace in record.predictions.traces[-1:]):
        return layers
    late_norms = [entry.norms for entry in record.gradients.measurements[-1:] if entry.step >= late_step]
    return {layer: steps for layer, steps in layers.items() if any(norms.get(layer) == 0 for norms in late_norms)}


def _is_before(record: Record, share: float) -> bool:
    """Returns whether a run has not done this share of its planned steps. Without a plan, whether it is not late."""
    if record.planned_steps is None:
        return not is_late(record)
    batches = record.batches  # in manual optimization, a batch may have several steps
    steps = batches.count / batches.per_step if batches.count else record.step
    return steps < share * record.planned_steps


def _min_batches(record: Record) -> int:
    """Returns the number of batches within which an optimizer should have stepped."""
    return (MAX_ACCUMULATED_BATCHES if record.epoch < 2 else 1) * record.batches.per_step


def _may_be_warming_up(record: Record) -> bool:
    """Returns whether no backward pass has run yet and the run may still be in its warm-up."""
    if record.batches.with_backward:
        return False
    if record.planned_steps is None:
        return record.epoch < 2
    return record.batches.count < MAX_WARM_UP_SHARE * record.planned_steps * record.batches.per_step


def gradients_reach_all_layers(record: Record) -> bool:
    """Returns whether gradients reach the layers and an optimizer has stepped, so that the finding is obsolete."""
    return (
        record.optimizers.have_stepped
        and bool(record.gradients.reached_layers)
        and not _find_optimizers_without_gradient(record)
        and not _find_layers_with_zero_gradient(record)
        and all(layer in record.gradients.reached_layers for layer in record.gradients.detached_layers)
    )


def _check_unused_and_frozen(record: Record, unused_layers: Sequence[str]) -> Iterator[Finding]:
    """Reports unused and frozen layers with severity INFO."""
    if unused_layers or record.gradients.frozen_layers:
        layers_by_advice = {
            "Leave unused layers out of the optimizer, or make the loss depend on them.": unused_layers,
            "Call requires_grad_(True) on frozen layers that should be trained.": record.gradients.frozen_layers,
        }
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.INFO,
            join_names([*unused_layers, *record.gradients.frozen_layers]),
            0,
            record.step,
            {"unused_layers": float(len(unused_layers)), "frozen_layers": float(len(record.gradients.frozen_layers))},
            " ".join(advice for advice, layers in layers_by_advice.items() if layers),
        )


RULE = Rule(
    Problem.NO_GRADIENT,
    check,
    explains=SYMPTOMS | {Problem.LEARNING_RATE_TOO_LOW, Problem.LEARNING_RATE_TOO_HIGH},
    is_obsolete=gradients_reach_all_layers,
    needs=frozenset({"gradients", "optimizers", "predictions", "units", "weights"}),
)

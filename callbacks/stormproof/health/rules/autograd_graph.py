"""Whether gradients reach the layers, and only those of this step."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.lightning.layer_names import join_names

MAX_ACCUMULATED_BATCHES = 64
"""Batches without a step of an optimizer that nobody puts together; of two epochs, any."""
MAX_WARM_UP_SHARE = 0.5
"""Maximum share of a run without a loss. Off-policy algorithms fill a replay buffer first."""
MIN_STEPS = 5
"""Steps at which gradients of the step before must have been there, or none at all."""


def check_no_gradient(record: Record) -> Iterator[Finding]:
    """The output depends on a layer, and no gradient reaches it; or a part is frozen or unused, as may be meant."""
    detached_layers = {
        layer: function
        for layer, function in record.detached_layers.items()
        if layer not in record.layers_with_gradient
    }
    lacks_gradient = record.steps_without_gradient >= MIN_STEPS and not record.layers_with_gradient
    if detached_layers:
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            join_names(detached_layers),
            0,
            record.step,
            {"layers": float(len(detached_layers)), "cut_by": ", ".join(sorted(set(detached_layers.values())))},
            "keep the graph: no .detach(), .data, .numpy(), argmax or torch.no_grad() between a layer and the loss; "
            "what is meant to stay as it is takes requires_grad_(False)",
        )
    elif lacks_gradient and not _may_be_warming_up(record):
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            "all layers",
            0,
            record.step,
            {"steps_without_a_gradient": float(record.steps_without_gradient)},
            "no parameter has one when the optimizer steps: does training_step return the loss? Is zero_grad() called "
            "between backward() and step()?",
        )
    elif not record.has_stepped and record.batches >= _min_batches(record) and not _may_be_warming_up(record):
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            "all layers",
            0,
            0,
            {"batches": float(record.batches), "optimizer_steps": 0.0},
            "no optimizer has stepped: does training_step return the loss or, in manual optimization, call "
            "self.manual_backward(loss) and optimizer.step()?",
        )
    yield from _check_unused_and_frozen(record, [] if lacks_gradient else record.unused_layers)


def _min_batches(record: Record) -> int:
    """Batches of which an optimizer should have taken one step."""
    return (MAX_ACCUMULATED_BATCHES if record.epoch < 2 else 1) * record.accumulate_grad_batches


def _may_be_warming_up(record: Record) -> bool:
    """Returns whether no backward pass has run yet and the run may still be in its warm-up."""
    if record.backward_batches:
        return False
    if record.planned_steps is None:
        return record.epoch < 2
    return record.batches < MAX_WARM_UP_SHARE * record.planned_steps * record.accumulate_grad_batches


def gradients_reach_all_layers(record: Record) -> bool:
    """Returns whether gradients reach the layers and an optimizer has stepped, so that the finding is obsolete."""
    return (
        record.has_stepped
        and bool(record.layers_with_gradient)
        and record.detached_layers.keys() <= record.layers_with_gradient
    )


def _check_unused_and_frozen(record: Record, unused_layers: list[str]) -> Iterator[Finding]:
    if unused_layers or record.frozen_layers:
        layers_by_advice = {
            "the loss does not depend on it; if that is meant, leave it out of the optimizer": unused_layers,
            "its requires_grad is False; if that is not meant, requires_grad_(True)": record.frozen_layers,
        }
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.INFO,
            join_names([*unused_layers, *record.frozen_layers]),
            0,
            record.step,
            {"unused_layers": float(len(unused_layers)), "frozen_layers": float(len(record.frozen_layers))},
            "; ".join(advice for advice, layers in layers_by_advice.items() if layers),
        )


def check_zero_grad(record: Record) -> Iterator[Finding]:
    """An optimizer's gradients of earlier steps are in those of later ones."""
    for optimizer, (stale_steps, checked_steps) in record.retained_gradients.items():
        if checked_steps >= MIN_STEPS and stale_steps >= checked_steps - 1:
            yield Finding(
                Problem.GRADIENTS_NOT_CLEARED,
                Severity.CRITICAL,
                f"optimizer {optimizer}",
                0,
                record.step,
                {"steps_with_old_gradients": float(stale_steps), "steps_looked_at": float(checked_steps)},
                "call optimizer.zero_grad() before each backward pass (in manual optimization nobody else does)",
            )

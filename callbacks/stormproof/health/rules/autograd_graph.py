"""Whether gradients reach the layers, and only those of this step."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.lightning.layer_names import join_names

AT_ONCE = 64
"""Batches without a step of an optimizer that nobody puts together; of two epochs, any."""
WARM_UP = 0.5
"""Maximum share of a run without a loss. Off-policy algorithms fill a replay buffer first."""
LOOKS = 5
"""Steps at which gradients of the step before must have been there, or none at all."""


def find_no_gradient(record: Record) -> Iterator[Finding]:
    """The output depends on a layer, and no gradient reaches it; or a part is frozen or unused, as may be meant."""
    cut = {layer: function for layer, function in record.cut.items() if layer not in record.has_gradient}
    no_gradient = record.without_gradient >= LOOKS and not record.has_gradient
    if cut:
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            join_names(cut),
            0,
            record.step,
            {"layers": float(len(cut)), "cut_by": ", ".join(sorted(set(cut.values())))},
            "keep the graph: no .detach(), .data, .numpy(), argmax or torch.no_grad() between a layer and the loss; "
            "what is meant to stay as it is takes requires_grad_(False)",
        )
    elif no_gradient and not _may_warm_up(record):
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.CRITICAL,
            "all layers",
            0,
            record.step,
            {"steps_without_a_gradient": float(record.without_gradient)},
            "no parameter has one when the optimizer steps: does training_step return the loss? Is zero_grad() called "
            "between backward() and step()?",
        )
    elif not record.has_stepped and record.batches >= _enough(record) and not _may_warm_up(record):
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
    yield from _may_be_meant_so(record, [] if no_gradient else record.unused)


def _enough(record: Record) -> int:
    """Batches of which an optimizer should have taken one step."""
    return (AT_ONCE if record.epoch < 2 else 1) * record.accumulates


def _may_warm_up(record: Record) -> bool:
    """Returns whether no backward pass has run yet and the run may still be in its warm-up."""
    if record.backwards:
        return False
    if record.planned is None:
        return record.epoch < 2
    return record.batches < WARM_UP * record.planned * record.accumulates


def gradients_reach_all_layers(record: Record) -> bool:
    """Returns whether gradients reach the layers and an optimizer has stepped, so that the finding is obsolete."""
    return record.has_stepped and bool(record.has_gradient) and record.cut.keys() <= record.has_gradient


def _may_be_meant_so(record: Record, unused: list[str]) -> Iterator[Finding]:
    if unused or record.frozen:
        whys = {
            "the loss does not depend on it; if that is meant, leave it out of the optimizer": unused,
            "its requires_grad is False; if that is not meant, requires_grad_(True)": record.frozen,
        }
        yield Finding(
            Problem.NO_GRADIENT,
            Severity.INFO,
            join_names([*unused, *record.frozen]),
            0,
            record.step,
            {"unused_layers": float(len(unused)), "frozen_layers": float(len(record.frozen))},
            "; ".join(why for why, layers in whys.items() if layers),
        )


def find_kept_gradients(record: Record) -> Iterator[Finding]:
    """An optimizer's gradients of earlier steps are in those of later ones."""
    for optimizer, (times, looked) in record.kept.items():
        if looked >= LOOKS and times >= looked - 1:
            yield Finding(
                Problem.GRADIENTS_NOT_CLEARED,
                Severity.CRITICAL,
                f"optimizer {optimizer}",
                0,
                record.step,
                {"steps_with_old_gradients": float(times), "steps_looked_at": float(looked)},
                "call optimizer.zero_grad() before each backward pass (in manual optimization nobody else does)",
            )

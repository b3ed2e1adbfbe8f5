"""Sentences about the verdict of a fault."""

from __future__ import annotations

from stormproof.replay.certification import Result
from stormproof.replay.comparison.batch_position import BatchPosition
from stormproof.replay.comparison.causes import kind_of
from stormproof.replay.comparison.verdict import Verdict, VerdictKind
from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.output_text import escape
from stormproof.replay.reports.component_names import describe_component, describe_components

FAULTS = {
    FaultKind.KILL: "SIGKILL",
    FaultKind.EPOCH_END: "SIGKILL at the end of an epoch",
    FaultKind.VALIDATION: "SIGKILL during validation",
    FaultKind.MID_SAVE: "death while writing a checkpoint",
    FaultKind.BEFORE_RENAME: "SIGKILL before a checkpoint is renamed",
    FaultKind.TERM: "SIGTERM",
    FaultKind.RANK: "SIGKILL of rank",
    FaultKind.TORN: "SIGKILL, newest checkpoint truncated",
    FaultKind.FULL_DISK: "full disk during a save",
}
"""Names of faults."""

IMPLICATIONS = {
    "frozen": "other parameters are trained than before",
    "mode": "layers such as dropout and BatchNorm act differently",
    "hyperparameters": "momentum, weight decay or another option of the optimizer changes",
    "scheduler": "the schedule of the learning rate continues from another position",
    "learning_rate": "the step size changes",
    "scaler": "the loss scale starts again, so that steps may be skipped or gradients may underflow",
    "before/parameters": "the progress of these parameters is lost or changed",
    "parameters": "state that the ledger does not contain changes the update",
    "before/optimizer": "moments or momentum start from another value, so that the loss may jump",
    "rng/generators": "the order of the data changes",
    "rng/workers": "augmentation in the loader workers changes",
    "rng/python": "random choices of Python code change",
    "rng/numpy": "random numbers of NumPy change, such as augmentation",
    "rng/torch": "dropout, shuffling and other random numbers of torch change",
    "rng/cuda": "dropout and other random numbers on the GPU change",
    "data/count": "a step uses another number of batches: the position in gradient accumulation was lost",
    "data/batches": "the same samples have another content, or other samples are used",
    "buffers": "evaluation uses other statistics",
    "variables": "the program continues with another value",
    "loss": "state that the ledger does not contain changes the loss",
    "gradients": "state that the ledger does not contain changes the gradients",
    "averaged": "the averaged model is another one",
    "length": "training ends at another step",
}
"""Consequence of a component that was not restored, by kind."""


def describe_fault(fault: Fault, step: int) -> str:
    """Returns the name and place of a fault."""
    rank = f" {fault.point.rank}" if fault.kind is FaultKind.RANK else ""
    return f"{FAULTS[fault.kind]}{rank} after step {step}"


HEADLINES = {
    VerdictKind.EXACT: "exact: resumed from step {resumed}, {compared} steps compared",
    VerdictKind.DIFFERS: "step {step}{rank}: {differing} from the uninterrupted run",
    VerdictKind.LOST_WORK: (
        "lost work: resumed exactly, but from step {resumed}, although a checkpoint of step {newest} was complete"
    ),
    VerdictKind.FROM_SCRATCH: "started from scratch: the restarted command began at step 1{loaded}",
    VerdictKind.REFUSED: "refused: the restarted command made no step (exit code {code})",
    VerdictKind.HUNG: "hung: the restarted command made no progress after {compared} steps",
    VerdictKind.CORRUPT_ACCEPTED: "corrupt checkpoint accepted: the restarted command trains from a damaged file",
    VerdictKind.FAILED: "failed after restart: exit code {code} after {compared} steps",
    VerdictKind.NO_FAULT: "no fault: the command ended before the fault",
}
"""Sentences by verdict."""


def headline(verdict: Verdict) -> str:
    """Returns the verdict as one sentence without a period."""
    return HEADLINES[verdict.kind].format(
        resumed=verdict.resumed_step,
        compared=verdict.compared_steps,
        step=verdict.step,
        rank=f" on rank {verdict.rank}" if verdict.rank else "",
        differing=_differing(verdict) if verdict.component else "",
        newest=verdict.resumed_step + verdict.lost_steps,
        loaded=f", although it loaded {escape(verdict.loaded[-1])}" if verdict.loaded else "",
        code=verdict.exit_code,
    )


def details(verdict: Verdict) -> list[tuple[str, str]]:
    """Returns labels and texts that explain a verdict."""
    lines = list[tuple[str, str]]()
    if verdict.component:
        lines.append(("first difference", f"{_first_difference(verdict)}"))
    if verdict.others:
        lines.append(("also not restored", describe_components(verdict.others)))
    if verdict.component and verdict.restored:
        lines.append(("restored", describe_components(verdict.restored)))
    if verdict.without_effect:
        lines.append(("differs without effect", describe_components(verdict.without_effect)))
    if verdict.message:
        lines.append(("last line of output", verdict.message))
    return lines


def result_line(result: Result) -> str:
    """Returns a fault and its verdict in one line."""
    return f"{describe_fault(result.fault, result.step)}: {headline(result.verdict)}"


def _differing(verdict: Verdict) -> str:
    if verdict.component == "length":
        return "the run ends at another step and differs"
    name = describe_component(verdict.component)
    return f"{name} differ" if name in {"parameters", "gradients"} or name.endswith("s)") else f"{name} differs"


def _first_difference(verdict: Verdict) -> str:
    kind, name = kind_of(verdict.component), describe_component(verdict.component)
    if kind == "data/indices" or (kind == "data/batches" and verdict.batch and verdict.batch.same_as):
        return f"batch of step {verdict.step} (data order): {_explain_order(verdict.batch)}"
    return f"{name}: {IMPLICATIONS.get(kind, 'it was not restored')}"


def _explain_order(batch: BatchPosition | None) -> str:
    if batch is None or batch.same_as is None:
        epoch = f" of epoch {batch.epoch}" if batch else ""
        return f"the shuffle order{epoch} was not restored"
    if batch.same_epoch != batch.epoch:
        return f"epoch {batch.epoch} repeats the order of epoch {batch.same_epoch}"
    if batch.starts_epoch:
        return f"epoch {batch.epoch} starts again, because the position in it was not restored"
    return f"it is the batch of step {batch.same_as}, because the position in epoch {batch.epoch} was not restored"

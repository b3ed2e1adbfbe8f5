"""Sentences about the verdict of a fault."""

from __future__ import annotations

from stormproof.replay.certification import Result
from stormproof.replay.comparison.causes import kind_of
from stormproof.replay.comparison.verdict import BatchPosition, Verdict, VerdictKind
from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.output_text import escape
from stormproof.replay.reports.component_names import describe_component, describe_components

FAULTS = {
    FaultKind.KILL: "SIGKILL",
    FaultKind.EPOCH_END: "SIGKILL at the end of an epoch",
    FaultKind.VALIDATION: "SIGKILL during validation",
    FaultKind.MID_SAVE: "process terminated during a checkpoint write",
    FaultKind.BEFORE_RENAME: "SIGKILL before the rename of a checkpoint",
    FaultKind.TERM: "SIGTERM",
    FaultKind.RANK: "SIGKILL of rank",
    FaultKind.TORN: "SIGKILL and truncation of the newest checkpoint",
    FaultKind.FULL_DISK: "full disk during a save",
}
"""Names of faults."""

CONSEQUENCES = {
    "frozen": "a different set of parameters is trained",
    "mode": "layers such as dropout and BatchNorm behave differently",
    "hyperparameters": "momentum, weight decay or another option of the optimizer changes",
    "scheduler": "the learning-rate schedule continues from a different step",
    "learning_rate": "the step size changes",
    "scaler": "the loss scale is reset, so steps may be skipped or gradients may underflow",
    "before/parameters": "training starts from different weights",
    "parameters": "the parameter update depends on state that certify does not record",
    "before/optimizer": "optimizer state, such as momentum, has different values, so the loss may spike",
    "before/averaged": "the averaged model, which the loss depends on, has different values",
    "before/buffers": "the forward pass uses different buffers, for example of spectral normalization",
    "rng/generators": "the program's own generators draw different numbers",
    "rng/workers": "augmentation in the loader workers changes",
    "rng/python": "the random module of Python draws different numbers",
    "rng/numpy": "NumPy draws different random numbers, for example for augmentation",
    "rng/torch": "torch draws different random numbers, for example for dropout and shuffling",
    "rng/cuda": "the GPU draws different random numbers, for example for dropout",
    "data/count": "a step uses a different number of batches: the position in gradient accumulation was lost",
    "data/batches": "the samples have different content, or different samples are used",
    "buffers": "evaluation uses different statistics",
    "variables": "the program continues with a different value",
    "loss": "the loss depends on state that certify does not record",
    "gradients": "the gradients depend on state that certify does not record",
    "averaged": "the averaged model has different values",
    "length": "training ends at a different step",
}
"""Consequence of a component that was not restored, by kind."""


def describe_fault(fault: Fault, step: int) -> str:
    """Returns the name and place of a fault."""
    rank = f" {fault.point.rank}" if fault.kind is FaultKind.RANK else ""
    return f"{FAULTS[fault.kind]}{rank} after step {step}"


PLURAL = {
    "before/parameters", "parameters", "gradients", "before/averaged", "averaged", "before/buffers", "buffers",
    "hyperparameters", "data/batches", "rng/generators", "rng/workers",
}  # fmt: skip
"""Kinds of components whose names are plural."""

HEADLINES = {
    VerdictKind.EXACT: "exact: resumed from step {resumed}, {compared} steps compared",
    VerdictKind.DIFFERS: "step {step}{rank}: {differing} from the uninterrupted run",
    VerdictKind.LOST_WORK: (
        "lost work: resumed exactly, but from step {resumed}, although a checkpoint of step {newest} was complete"
    ),
    VerdictKind.FROM_SCRATCH: (
        "started from scratch: the restarted command began at step 1 although a complete checkpoint existed{loaded}"
    ),
    VerdictKind.REFUSED: "refused: the restarted command exited before its first step (exit code {code})",
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
        loaded=f", and it loaded {escape(verdict.loaded[-1])}" if verdict.loaded else "",
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
        lines.append(("differs, without effect on training", describe_components(verdict.without_effect)))
    if verdict.message:
        lines.append(("last line of output", verdict.message))
    return lines


def result_line(result: Result) -> str:
    """Returns a fault and its verdict in one line."""
    return f"{describe_fault(result.fault, result.step)}: {headline(result.verdict)}"


def _differing(verdict: Verdict) -> str:
    verb = "differ" if kind_of(verdict.component) in PLURAL else "differs"
    return f"{describe_component(verdict.component)} {verb}"


def _first_difference(verdict: Verdict) -> str:
    kind, name = kind_of(verdict.component), describe_component(verdict.component)
    if kind == "data/indices" or (kind == "data/batches" and verdict.batch and verdict.batch.same_as):
        return f"batch of step {verdict.step} (data order): {_explain_order(verdict.batch)}"
    return f"{name}: {CONSEQUENCES.get(kind, 'it was not restored')}"


def _explain_order(batch: BatchPosition | None) -> str:
    if batch is None or batch.same_as is None:
        epoch = f" of epoch {batch.epoch}" if batch else ""
        return f"the shuffle order{epoch} was not restored"
    if batch.same_epoch != batch.epoch:
        return f"epoch {batch.epoch} repeats the order of epoch {batch.same_epoch}"
    if batch.starts_epoch:
        return f"epoch {batch.epoch} starts again, because the position in it was not restored"
    return f"it is the batch of step {batch.same_as}, because the position in epoch {batch.epoch} was not restored"

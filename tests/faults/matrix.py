"""The cells of the matrix, and where a training can be killed."""

from __future__ import annotations

from itertools import product

from tests.support.exact_resume_training import BATCH_SIZE, Cell
from tests.support.forked_attempts import train_uninterrupted

BATCH_PHASES = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")
VALIDATION_PHASES = ("on_validation_start", "on_validation_batch_start", "on_validation_end")
EPOCH_PHASES = ("on_train_epoch_end", "on_train_epoch_start")
PHASES = (*BATCH_PHASES, *VALIDATION_PHASES, *EPOCH_PHASES)
EPOCHS, STEPS = 3, 14


def make_cell(workers: int, accumulate: int, mid_epoch_validation: bool, ranks: int) -> Cell:
    """3 epochs of 14 steps; where batches are accumulated, the last step of an epoch has one less."""
    interval = 4 if accumulate == 1 else 6  # which lies between two steps
    return Cell(
        workers,
        accumulate,
        interval if mid_epoch_validation else None,
        ranks,
        resumable_validation=workers > 0,
        samples=BATCH_SIZE * ranks * (STEPS * accumulate - (accumulate > 1)),
        epochs=EPOCHS,
    )


MATRIX = [make_cell(*choices) for choices in product((0, 2), (1, 4), (False, True), (1, 2))]
CELLS = {
    "plain": make_cell(workers=0, accumulate=1, mid_epoch_validation=False, ranks=1),
    "accumulated": make_cell(workers=0, accumulate=4, mid_epoch_validation=True, ranks=1),
    "workers": make_cell(workers=2, accumulate=1, mid_epoch_validation=True, ranks=1),
    "workers, accumulated": make_cell(workers=2, accumulate=4, mid_epoch_validation=False, ranks=1),
    "two ranks": make_cell(workers=0, accumulate=1, mid_epoch_validation=True, ranks=2),
}
"""Cells of the matrix that ``test_exact_resume.py`` kills at every step, by name."""


def cell_id(cell: Cell) -> str:
    """For the name of a test."""
    return f"{cell.workers}workers-{cell.accumulate}accumulated-{cell.validate_every}validate-{cell.ranks}ranks"


def phase_steps(cell: Cell, phase: str) -> list[int]:
    """The steps at which a training comes by a phase, in order."""
    epochs = range(STEPS, cell.steps + 1, STEPS)
    if phase == "on_train_epoch_start":
        return [0, *epochs][:-1]
    if phase == "on_train_epoch_end":
        return list(epochs)
    if phase in VALIDATION_PHASES:
        outcome = train_uninterrupted(cell)
        assert outcome.results is not None
        return sorted({entry[1] for entry in outcome.results[0]["journal"] if entry[0] == "validation"})
    return list(range(1, cell.steps + 1)) if phase == "on_train_batch_end" else list(range(cell.steps))


def plan_kill_points(cell: Cell) -> list[tuple[str, int]]:
    """Each step once, in one of the phases of a batch; each validation and each epoch's end; before and after all."""
    batches = [(phase, phase_steps(cell, phase)) for phase in BATCH_PHASES]
    validated, epochs = phase_steps(cell, VALIDATION_PHASES[0]), phase_steps(cell, "on_train_epoch_end")
    kill_points = [
        *((phase, steps[number]) for number in range(cell.steps) for phase, steps in [batches[number % len(batches)]]),
        *((VALIDATION_PHASES[number % len(VALIDATION_PHASES)], step) for number, step in enumerate(validated)),
        *(
            (phase, step)
            for step in epochs
            for phase in EPOCH_PHASES
            if step < cell.steps or phase == "on_train_epoch_end"
        ),
    ]
    return [("on_fit_start", 0), *sort_kill_points(kill_points), ("on_train_end", cell.steps)]


def sort_kill_points(kill_points: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Sorts phases and steps into the order in which training reaches them.

    Of one step, phases before its checkpoint come first. A run resumed from that checkpoint reaches all others.
    """
    phases = ("on_train_batch_end", *VALIDATION_PHASES, *EPOCH_PHASES, *BATCH_PHASES[:3])
    return sorted(kill_points, key=lambda kill_point: (kill_point[1], phases.index(kill_point[0])))

"""Numbers of batches and optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batches:
    """Training batches of a run.

    Attributes:
        count: Number of batches so far.
        accumulated: Number of batches per optimizer step.
        with_backward: Number of batches with a backward pass.
        have_stepped: Whether an optimizer has stepped. Lightning does not count all steps in manual optimization.
    """

    count: int = 0
    accumulated: int = 1
    with_backward: int = 0
    have_stepped: bool = False

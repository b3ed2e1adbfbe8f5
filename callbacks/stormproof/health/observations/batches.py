"""Counts of training batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batches:
    """Training batches of a run.

    Attributes:
        count: Number of batches so far.
        per_step: Number of batches per optimizer step.
        with_backward: Number of batches with a backward pass.
    """

    count: int = 0
    per_step: int = 1
    with_backward: int = 0

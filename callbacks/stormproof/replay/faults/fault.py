"""A fault that certification injects into a command."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stormproof.replay.pause import PausePoint


class FaultKind(Enum):
    """Kind of a fault. The value is its name in ``--faults``."""

    KILL = "kill"
    """SIGKILL of all processes after a step."""
    EPOCH_END = "epoch-end"
    """SIGKILL between two epochs."""
    VALIDATION = "validation"
    """SIGKILL during validation."""
    MID_SAVE = "mid-save"
    """Death in the middle of writing a checkpoint."""
    BEFORE_RENAME = "before-rename"
    """SIGKILL after a checkpoint file is complete and before it is renamed."""
    TERM = "term"
    """SIGTERM, and SIGKILL after a grace period."""
    RANK = "rank"
    """SIGKILL of one rank."""
    TORN = "torn"
    """SIGKILL, after which the newest checkpoint is truncated."""
    FULL_DISK = "full-disk"
    """A save that fails because the disk is full, and SIGKILL soon after."""


FROZEN_KINDS = frozenset(
    {FaultKind.KILL, FaultKind.EPOCH_END, FaultKind.VALIDATION, FaultKind.BEFORE_RENAME, FaultKind.TORN}
)
"""Faults that leave the files as they are at a moment: a copy of the stopped command's folder has the same files.

A killed process writes nothing more. So one run, stopped at several events, provides the files of several kills.
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """A planned fault.

    Attributes:
        kind: Kind.
        step: Number of steps before the fault in the uninterrupted run.
        point: Event after which the process stops itself and the fault is injected.
        size_limit: Size in bytes at which a file ends for ``MID_SAVE``.
    """

    kind: FaultKind
    step: int
    point: PausePoint
    size_limit: int = 0

    @property
    def is_frozen(self) -> bool:
        """True if the fault only needs the files of a stopped command."""
        return self.kind in FROZEN_KINDS

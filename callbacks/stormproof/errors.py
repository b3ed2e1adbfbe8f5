"""Errors that are one sentence for a person, each with the exit code that a launcher should see."""

from __future__ import annotations


class StormproofError(RuntimeError):
    """A run that cannot start or go on, in one sentence: what, where, and the way out.

    Attributes:
        exit_code: what a process that ends by it should return.
    """

    exit_code = 1


class NotResumableError(StormproofError):
    """A run whose checkpoints could not be resumed from, said at its start; the user's to change."""

    exit_code = 2


class FolderTakenError(StormproofError):
    """Another attempt that still lives owns the folder."""

    exit_code = 2


class FolderLostError(StormproofError):
    """Another attempt took the folder over; this one may write no more to it."""

    exit_code = 74


class StorageError(StormproofError):
    """Nothing could be saved for too long, or not at the end; what was saved before is there."""

    exit_code = 74


class DamagedError(StormproofError):
    """A checkpoint is damaged."""

    exit_code = 74


class NoGoodCheckpointError(DamagedError):
    """All checkpoints of a folder are damaged or lost.

    Args:
        problem: What is wrong, without the way out.

    Attributes:
        problem: The same.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{problem}: put a copy back, or begin at step 0 in another folder, or in this one by "
            "latest(start_over=True)"
        )

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.problem,)


class RanksDisagreeError(StormproofError):
    """The ranks are about to go on from different states; started again, they should agree."""

    exit_code = 75


class DivergedError(StormproofError):
    """The training diverges, and what was to be done against it did not help, or was not to be done."""

    exit_code = 76


class PreemptedExit(SystemExit):
    """The process was asked to end, and leaves at a place from which it goes on when it is started again.

    Args:
        signal: the name of the signal that asked.
        is_rank_zero: whether this is rank 0, which carries the code. The others leave with 0: a launcher kills the rest
            when one leaves with an error.
    """

    exit_code = 75

    def __init__(self, signal: str, *, is_rank_zero: bool) -> None:
        super().__init__(self.exit_code if is_rank_zero else 0)
        self.signal = signal

"""Exceptions with a message for users and an exit code for launchers."""

from __future__ import annotations


class StormproofError(RuntimeError):
    """Base class of errors that the user can act on. The message is one line: the problem, its place and the fix.

    Attributes:
        exit_code: Code with which a program should exit because of this error.

    Example:
        >>> from stormproof.errors import StorageError
        >>> try:
        ...     raise StorageError("the disk is full")
        ... except StormproofError as error:
        ...     print(f"{error} (exit code {error.exit_code})")
        the disk is full (exit code 74)

    References:
        Exit codes 74 and 75 are ``EX_IOERR`` and ``EX_TEMPFAIL`` of sysexits.h.
    """

    exit_code = 1


class NotResumableError(StormproofError):
    """The run could not be resumed from its checkpoints. Raised at the start; the configuration must change."""

    exit_code = 2


class FolderTakenError(StormproofError):
    """Another running attempt owns the folder."""

    exit_code = 2


class FolderLostError(StormproofError):
    """Another attempt has taken over the folder. This attempt must not write to it."""

    exit_code = 74


class StorageError(StormproofError):
    """A checkpoint could not be saved within the timeout or at the end. Earlier checkpoints are intact."""

    exit_code = 74


class DamagedError(StormproofError):
    """A checkpoint is damaged."""

    exit_code = 74


class NoGoodCheckpointError(DamagedError):
    """All checkpoints of a folder are damaged or lost.

    Args:
        problem: Description of the problem, without the fix.

    Attributes:
        problem: Same as the argument.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"{problem}: restore a copy, or start at step 0 in another folder or with "
            "latest_checkpoint(start_over=True)"
        )

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.problem,)


class RanksDisagreeError(StormproofError):
    """The states of the ranks differ. A restart usually resolves this."""

    exit_code = 75


class DivergedError(StormproofError):
    """The training run diverges, and skipping or rolling back did not help or is disabled.

    Raised by :class:`stormproof.DivergenceGuard`, on all ranks. A restart would diverge again. The exit code is 76.

    Example:
        >>> try:
        ...     raise DivergedError("training diverges at step 33: the loss is nan")
        ... except DivergedError as error:
        ...     print(error.exit_code)
        76

    References:
        Chowdhery et al., PaLM: Scaling language modeling with Pathways, 2022, section 5.1 (loss spikes).
    """

    exit_code = 76


class PreemptedExit(SystemExit):
    """Exit after a termination signal. The same command resumes the run.

    Raised by :class:`stormproof.Preemption` once all ranks have saved. Rank 0 exits with code 75. The other ranks exit
    with 0, because a launcher kills all ranks if one exits with an error. It is a SystemExit, so that
    ``except Exception`` does not catch it.

    Args:
        signal: Name of the signal, such as ``SIGTERM``.
        is_rank_zero: Whether this is rank 0.

    Attributes:
        signal: Name of the signal.

    Example:
        >>> try:
        ...     raise PreemptedExit("SIGTERM", is_rank_zero=True)
        ... except PreemptedExit as error:
        ...     print(error.signal, error.code)
        SIGTERM 75

    References:
        75 is ``EX_TEMPFAIL`` of sysexits.h: a temporary failure, try again.
    """

    exit_code = 75

    def __init__(self, signal: str, *, is_rank_zero: bool) -> None:
        super().__init__(self.exit_code if is_rank_zero else 0)
        self.signal = signal

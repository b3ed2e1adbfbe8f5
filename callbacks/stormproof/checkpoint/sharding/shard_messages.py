"""Requests of rank 0 to the shard writers of the ranks, and their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.distributed.checkpoint.storage import WriteResult

from stormproof.checkpoint.manifest import StoredFile


@dataclass(frozen=True)
class WriteRequest:
    """Asks a rank to write its shard.

    Attributes:
        save_id: Number of the checkpoint.
        folder: Name of its folder.
    """

    save_id: int
    folder: str


@dataclass(frozen=True)
class ReadRequest:
    """Asks the ranks to read files.

    Attributes:
        files_by_rank: The files of each rank, by name in the storage.
    """

    files_by_rank: Sequence[Mapping[str, StoredFile]]


@dataclass(frozen=True)
class Report:
    """Result of a request on one rank.

    Attributes:
        files: The written files.
        results: Positions of the items.
        non_finite_names: Tensors that have become NaN or infinite. No file is written then.
        change: Why a file that was read is bad. None if all are good.
        error: Why the request failed. A TimeoutError if the rank did not reply. None if it succeeded.
        warning: A problem that does not prevent the checkpoint. None without a problem.
    """

    files: Mapping[str, StoredFile] = field(default_factory=dict)
    results: Sequence[WriteResult] = ()
    non_finite_names: Sequence[str] = ()
    change: str | None = None
    error: Exception | None = None
    warning: str | None = None


def make_picklable(error: Exception) -> Exception:
    """Returns an exception that can be sent to another rank."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return RuntimeError(f"{type(error).__name__}: {error}")


def raise_error(rank: int, report: Report) -> None:
    """Raises the error of a report, with the rank in its message."""
    error = report.error
    if isinstance(error, OSError):
        raise OSError(error.errno, f"rank {rank}: {error.strerror}", error.filename)
    if error is not None:
        raise RuntimeError(f"rank {rank} could not execute a request for a checkpoint: {error}")

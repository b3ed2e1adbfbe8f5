"""Messages between the background threads of the ranks: requests of rank 0 to the shard writers, and their reports."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  # public, but not in __all__
from torch.distributed.checkpoint.storage import WriteResult

from stormproof.checkpoint.hashing import StoredFile
from stormproof.distributed.collectives import broadcast
from stormproof.distributed.rank import rank_zero_address

CONNECT_TIMEOUT = timedelta(seconds=300)
_SERVERS: list[TCPStore] = []
"""Servers of this process. They live as long as the process, because other ranks may still use them."""


class RankChannel:
    """Sends Python objects between the threads of a job, by a server of torch on rank 0.

    Collectives belong to the training thread. All ranks create the channel together.

    Raises:
        DistNetworkError: If a rank cannot connect to rank 0.
    """

    def __init__(self) -> None:
        is_rank_zero = dist.get_rank() == 0
        host = broadcast(rank_zero_address() if is_rank_zero else "")
        if is_rank_zero:
            self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
            _SERVERS.append(self._store)
        port = broadcast(self._store.port if is_rank_zero else 0)
        if not is_rank_zero:
            self._store = TCPStore(host, port, wait_for_workers=False, timeout=CONNECT_TIMEOUT)

    def send(self, key: str, message: Any) -> None:
        """Sends a picklable object under a key that is used once.

        Raises:
            ConnectionError: If rank 0 has ended.
        """
        with _connection_errors():
            self._store.set(key, pickle.dumps(message))  # type: ignore[arg-type]  # torch's stubs omit bytes

    def receive(self, key: str, pause: Callable[[], bool]) -> Any:
        """Waits for a message and returns it.

        Polls, because torch logs a warning when a blocking wait times out.

        Args:
            key: Key of the message.
            pause: Called while there is no message, before the next check. Returns False to stop.

        Raises:
            TimeoutError: If ``pause`` returns False.
            ConnectionError: If rank 0 has ended.
        """
        with _connection_errors():
            while not self._store.check([key]):
                if not pause() and not self._store.check([key]):  # it may have arrived during the pause
                    raise TimeoutError(f"there was no message {key}")
            return pickle.loads(self._store.get(key))  # noqa: S301 (sent by a rank of this job)

    def has(self, key: str) -> bool:
        """Returns whether a message with this key exists.

        Raises:
            ConnectionError: If rank 0 has ended.
        """
        with _connection_errors():
            return self._store.check([key])

    def delete(self, key: str) -> None:
        """Deletes a message that every rank has received."""
        self._store.delete_key(key)


@contextmanager
def _connection_errors() -> Generator[None, None, None]:
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise ConnectionError(f"rank 0 cannot be reached: {error}") from error


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


def raise_first_error(reports: Sequence[Report]) -> None:
    """Raises the error of the lowest rank that has one, with the rank in its message."""
    for rank, error in enumerate(report.error for report in reports):
        if isinstance(error, OSError):
            raise OSError(error.errno, f"rank {rank}: {error.strerror}", error.filename)
        if error is not None:
            raise RuntimeError(f"rank {rank} could not execute a request for a checkpoint: {error}")

"""Writes each rank's part of a sharded checkpoint in a background thread."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.finite_check import NonFiniteError, is_finite
from stormproof.checkpoint.host_staging import HostStager
from stormproof.checkpoint.loadable import check_loadable
from stormproof.checkpoint.manifest import StoredFile
from stormproof.checkpoint.sharding.rank_channel import RankChannel
from stormproof.checkpoint.sharding.shard_files import ShardFiles
from stormproof.checkpoint.sharding.shard_plan import PlannedValue, ShardPlan, ShardPlanner
from stormproof.checkpoint.storage import Storage
from stormproof.distributed.collectives import world_size
from stormproof.long_waits import long_wait

POLL_SECONDS, IDLE_POLL_SECONDS = 0.02, 0.5
"""Time between two checks for a message, in seconds: if one is expected, and otherwise."""
STAGE_TIMEOUT_SECONDS = 60.0
"""Maximum time that training waits for the previous write of this rank, in seconds."""
CLOSE_TIMEOUT_SECONDS = 10.0
"""Maximum time to wait for the other ranks at the end, in seconds."""


@dataclass(frozen=True)
class _Shard:
    """Copy of this rank's part of one checkpoint.

    Attributes:
        number: Number of the checkpoint among those of this process, from 1.
        plan: What this rank writes.
        values: The values, in host memory. None if the previous write is still using that memory.
    """

    number: int
    plan: ShardPlan
    values: Mapping[MetadataIndex, PlannedValue] | None


@dataclass(frozen=True)
class _Report:
    """Result of writing one shard.

    Attributes:
        files: The written files.
        results: Where the items are.
        non_finite_names: Tensors that have become NaN or infinite. No file is written then.
        error: Why the shard could not be written. None if it was.
    """

    files: Mapping[str, StoredFile] = field(default_factory=dict)
    results: Sequence[WriteResult] = ()
    non_finite_names: Sequence[str] = ()
    error: Exception | None = None


class ShardWriter:
    """Writes the shards of all ranks. Each rank has one, and its thread waits for commands of rank 0.

    Args:
        storage: Storage of the checkpoints, the same on all ranks.
        rank: Rank of this process.
    """

    def __init__(self, storage: Storage, rank: int) -> None:
        self._storage, self._rank = storage, rank
        self._planner, self._stager = ShardPlanner(), HostStager()
        self._planned: tuple[ShardPlan, Mapping[MetadataIndex, PlannedValue]] | None = None
        self._shard: _Shard | None = None
        self._baseline_names: set[str] | None = None
        self._numbers, self._commands = itertools.count(1), itertools.count(1)
        self._number = 0  # of the last planned checkpoint
        self._reported_number = 0  # of the last checkpoint that this rank wrote, or failed to write
        self._has_checked_loadable = False
        self._has_ended = False  # the thread
        self._deadline = inf  # by time.monotonic, for messages
        self._is_writing = threading.Lock()
        self._changed = threading.Condition()
        self._channel = RankChannel() if world_size() > 1 else None
        self._thread = None if rank == 0 else BackgroundJob(self._serve, "shard-writer")

    def set_baseline(self, state: Mapping[str, Any]) -> None:
        """Accepts the tensors of a loaded state that are not finite, also later. All ranks call it together."""
        self._baseline_names = set(_find_non_finite(self._planner.plan(state)[1]))

    def plan(self, state: Mapping[str, Any]) -> None:
        """Decides which rank writes which part of ``state``. All ranks call it together, before :meth:`stage`."""
        self._planned = self._planner.plan(state)
        self._number = next(self._numbers)

    def stage(self) -> None:
        """Copies this rank's part into host memory, so that training can continue.

        If the previous write is still using that memory after 60 s, this rank reports an error, and the checkpoint is
        not committed.

        Raises:
            NotResumableError: If torch would refuse to load a value that is not a tensor.
        """
        assert self._planned is not None, "plan comes first"
        plan, values = self._planned
        self._planned = None
        with long_wait("storage"):
            is_free = self._is_writing.acquire(timeout=STAGE_TIMEOUT_SECONDS)
        staged_values = None
        if is_free:
            try:
                self._check_loadable(plan, values)
                staged_values = self._stager.stage(values)
            finally:
                self._is_writing.release()
        with self._changed:
            self._shard = _Shard(self._number, plan, staged_values)
            self._changed.notify_all()

    def write(self, folder: str, rest: Mapping[str, Any]) -> dict[str, StoredFile]:
        """Lets all ranks write the staged checkpoint, and returns all files. Runs in a background thread of rank 0.

        Args:
            folder: Name of the checkpoint's folder, which exists.
            rest: The checkpoint without parameters and optimizer states.

        Raises:
            NonFiniteError: If a tensor has become NaN or infinite.
            OSError: If a rank cannot write.
        """
        assert self._shard is not None, "stage comes first"
        shard, command = self._shard, next(self._commands)
        if self._channel is not None:
            self._channel.send(f"command/{command}", (shard.number, folder))
        reports = [self._write_shard(shard, folder)]
        _raise_error(0, reports[0])
        files = ShardFiles(self._storage, folder)
        files.write_rest(rest)
        for rank in range(1, world_size()):
            reports.append(self._receive_report(command, rank))
            _raise_error(rank, reports[-1])
        if self._channel is not None:
            self._channel.forget(f"command/{command}")
        non_finite_names = [name for report in reports for name in report.non_finite_names]
        if non_finite_names:
            raise NonFiniteError(sorted(set(non_finite_names)))
        assert shard.plan.index is not None
        files.write_index(shard.plan.index, [[*report.results] for report in reports])
        for report in reports:
            files.files.update(report.files)
        return files.files

    def stop_waiting_soon(self) -> None:
        """Makes rank 0 give up on the other ranks after 10 s, because the run ends."""
        self._deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS

    def close(self, *, is_interrupted: bool = False) -> None:
        """Ends the threads. On ranks other than 0, first waits for the last write, for at most 10 s.

        Args:
            is_interrupted: Whether not to wait.
        """
        if self._thread is None:
            if self._channel is not None:
                self._channel.send(f"command/{next(self._commands)}", None)
            return
        self.stop_waiting_soon()
        with self._changed:
            if self._shard is not None and not is_interrupted:
                number = self._shard.number
                self._changed.wait_for(
                    lambda: self._reported_number >= number or self._has_ended, CLOSE_TIMEOUT_SECONDS
                )
            self._deadline = time.monotonic()
            self._changed.notify_all()
        self._thread.join(2 * IDLE_POLL_SECONDS)

    def _serve(self) -> None:
        """Writes this rank's shard whenever rank 0 commands it."""
        try:
            for command in itertools.count(1):
                self._follow_command(command)
        except (StopIteration, TimeoutError, ConnectionError):  # rank 0 or this rank ends
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _follow_command(self, command: int) -> None:
        assert self._channel is not None
        message = self._channel.receive(f"command/{command}", self._pause)
        if message is None:
            raise StopIteration
        number, folder = message
        report = self._write_when_staged(number, folder)
        self._channel.send(f"report/{command}/{self._rank}", report)
        with self._changed:
            self._reported_number = number
            self._changed.notify_all()

    def _write_when_staged(self, number: int, folder: str) -> _Report:
        with self._changed:
            self._changed.wait_for(
                lambda: (self._shard is not None and self._shard.number >= number) or self._should_stop()
            )
            shard = self._shard
        if shard is None or shard.number != number:
            return _Report(error=OSError(errno.EBUSY, "its copy of the checkpoint was replaced by a newer one"))
        return self._write_shard(shard, folder)

    def _write_shard(self, shard: _Shard, folder: str) -> _Report:
        with self._is_writing:
            if shard.values is None:
                return _Report(error=OSError(errno.EBUSY, "it is still writing the previous checkpoint"))
            try:
                non_finite_names = _find_non_finite(shard.values)
                if self._baseline_names is None:
                    self._baseline_names = set(non_finite_names)
                new_names = [name for name in non_finite_names if name not in self._baseline_names]
                if new_names:
                    return _Report(non_finite_names=new_names)
                files = ShardFiles(self._storage, folder)
                results = files.write_shard(self._rank, shard.plan.items, shard.values)
                return _Report(files.files, results)
            except Exception as error:  # noqa: BLE001 (rank 0 raises it)
                return _Report(error=_make_picklable(error))

    def _receive_report(self, command: int, rank: int) -> _Report:
        channel, key = self._channel, f"report/{command}/{rank}"
        assert channel is not None
        try:
            report: _Report = channel.receive(key, self._pause)
        except TimeoutError as error:
            raise TimeoutError(errno.ETIMEDOUT, f"rank {rank} has not written its part") from error
        channel.forget(key)
        return report

    def _check_loadable(self, plan: ShardPlan, values: Mapping[MetadataIndex, PlannedValue]) -> None:
        if self._has_checked_loadable:
            return
        for item in plan.items.items:
            value = values[item.index]
            if item.type == WriteItemType.BYTE_IO and isinstance(value, bytes):
                check_loadable(value, item.index.fqn)
        self._has_checked_loadable = True

    def _pause(self) -> bool:
        """Waits until the next check for a message. Returns False if this rank should stop waiting."""
        with self._changed:
            # only rank 0 waits for reports, which are expected
            is_expected = self._rank == 0 or (self._shard is not None and self._shard.number > self._reported_number)
            if not self._should_stop():
                self._changed.wait(POLL_SECONDS if is_expected else IDLE_POLL_SECONDS)
        return not self._should_stop()

    def _should_stop(self) -> bool:
        return time.monotonic() >= self._deadline


def _find_non_finite(values: Mapping[MetadataIndex, PlannedValue]) -> list[str]:
    return [index.fqn for index, value in values.items() if isinstance(value, torch.Tensor) and not is_finite(value)]


def _make_picklable(error: Exception) -> Exception:
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return RuntimeError(f"{type(error).__name__}: {error}")


def _raise_error(rank: int, report: _Report) -> None:
    error = report.error
    if isinstance(error, OSError):
        raise OSError(error.errno, f"rank {rank}: {error.strerror}", error.filename)
    if error is not None:
        raise RuntimeError(f"rank {rank} could not write its part of the checkpoint: {error}")

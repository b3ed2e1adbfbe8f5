"""Writes each rank's shard of a checkpoint, and reads another one back, in a background thread."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType

from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.file_names import format_shard_name
from stormproof.checkpoint.finite_check import NonFiniteError, is_finite
from stormproof.checkpoint.hashing import StoredFile, find_content_problem
from stormproof.checkpoint.host_staging import HostStager
from stormproof.checkpoint.lease import Owner
from stormproof.checkpoint.loadable import check_loadable
from stormproof.checkpoint.sharding.rank_channel import (
    RankChannel,
    ReadRequest,
    Report,
    WriteRequest,
    make_picklable,
    raise_first_error,
)
from stormproof.checkpoint.sharding.shard_files import ShardFiles
from stormproof.checkpoint.sharding.shard_plan import PlannedValue, ShardPlan, ShardPlanner
from stormproof.checkpoint.storage import Storage
from stormproof.distributed.collectives import all_gather, world_size

POLL_SECONDS, IDLE_POLL_SECONDS = 0.02, 0.5
"""Time between two checks for a message, in seconds: if one is expected, and otherwise."""
EXPECTED_SECONDS = 2.0
"""Time after a report in which the next request is expected, in seconds."""
JOIN_TIMEOUT_SECONDS = 10.0
"""Maximum time to wait for the end of the thread, in seconds. A thread in torch aborts the process at its end."""
CLOSE_TIMEOUT_SECONDS = 60.0
"""Maximum time to wait for the other ranks at the end, in seconds."""


_Shard = tuple[ShardPlan, Mapping[MetadataIndex, PlannedValue]]
"""What this rank writes, and the values."""


class ShardWriter:
    """Writes this rank's shard of each checkpoint.

    On rank 0, also collects the results of the other ranks. On other ranks, a background thread waits for requests of
    rank 0.

    Args:
        storage: Storage of the checkpoints, the same on all ranks.
        rank: Rank of this process.
    """

    def __init__(self, storage: Storage, rank: int) -> None:
        self._storage, self._rank = storage, rank
        self._world_size = world_size()  # the process group may be destroyed while a thread is still writing
        self._planner, self._stager = ShardPlanner(), HostStager()
        self._planned: _Shard | None = None
        self._staged: _Shard | None = None  # in host memory
        self._baseline_names: set[str] | None = None
        self._request_ids = itertools.count(1)
        # numbers of the last checkpoints of this process, from 1: planned, staged, and written or failed on this rank
        self._save_id = self._staged_id = self._reported_id = 0
        self._report_time = -inf  # of the last report, by time.monotonic
        self._has_thread_ended = False
        self._deadline = inf  # by time.monotonic, for messages
        self._write_lock = threading.Lock()
        self._condition = threading.Condition()
        self._channel = RankChannel() if self._world_size > 1 else None
        self._processes = all_gather(Owner.from_this_process())
        self._thread = None if rank == 0 else BackgroundJob(self._serve, "shard-writer")

    @property
    def baseline_names(self) -> set[str] | None:
        """Names of tensors that may be non-finite. None before the first checkpoint or resume."""
        return self._baseline_names

    def set_baseline(self, state: Mapping[str, Any]) -> None:
        """Records which loaded tensors are not finite. They do not prevent later commits.

        All ranks call it together.
        """
        self._baseline_names = set(_find_non_finite(self._planner.plan(state)[1]))

    def plan(self, state: Mapping[str, Any]) -> None:
        """Decides which rank writes which shards of ``state``. All ranks call it together, before :meth:`stage`."""
        self._planned = self._planner.plan(state)
        self._save_id += 1

    def stage(self) -> None:
        """Copies this rank's shard into host memory, so that training can continue.

        Rank 0 must have no write in progress on any rank.

        Raises:
            NotResumableError: If torch would refuse to load a value that is not a tensor.
        """
        assert self._planned is not None, "plan comes first"
        plan, values = self._planned
        self._planned = None
        if self._staged_id == 0:
            _check_loadable(plan, values)
        with self._write_lock:
            staged_values = self._stager.stage(values)
            with self._condition:
                self._staged, self._staged_id = (plan, staged_values), self._save_id
                self._condition.notify_all()

    def write(self, folder: str, unsharded_state: Mapping[str, Any]) -> dict[str, StoredFile]:
        """Writes the staged checkpoint on all ranks and returns its files. Runs in a background thread of rank 0.

        Args:
            folder: Name of the checkpoint's folder, which exists.
            unsharded_state: The checkpoint without parameters and optimizer states.

        Raises:
            NonFiniteError: If a tensor has become NaN or infinite.
            OSError: If a rank cannot write.
        """
        assert self._staged is not None, "stage comes first"
        metadata = self._staged[0].metadata
        assert metadata is not None
        # waits for all reports, even after an error, so that no rank uses the folder or the copy afterwards
        reports = self._request(WriteRequest(self._staged_id, folder))
        non_finite_names = [name for report in reports for name in report.non_finite_names]
        if non_finite_names:
            raise NonFiniteError(sorted(set(non_finite_names)))
        raise_first_error(reports)
        files = ShardFiles(self._storage, folder)
        files.write_unsharded_state(unsharded_state)
        files.write_metadata(metadata, [[*report.results] for report in reports])
        for report in reports:
            files.files.update(report.files)
        return files.files

    def check_content(self, files: Mapping[str, StoredFile]) -> str | None:
        """Reads files of a checkpoint on all ranks, before retention deletes an older one.

        Each rank reads one shard. Runs in a background thread of rank 0.

        Args:
            files: The files according to the manifest, by name in the storage.

        Returns:
            Why a file is bad. None if all are good.

        Raises:
            OSError: If a rank cannot read a file.
        """
        files_by_rank: list[dict[str, StoredFile]] = [{} for _ in range(self._world_size)]
        readers = {format_shard_name(rank): self._choose_reader(rank) for rank in range(self._world_size)}
        for name, file in files.items():
            files_by_rank[readers.get(name.rpartition("/")[2], 0)][name] = file
        reports = self._request(ReadRequest(files_by_rank))
        for rank, report in enumerate(reports):
            if isinstance(report.error, TimeoutError):  # the rank is ending, so rank 0 reads its files
                reports[rank] = self._read_files(files_by_rank[rank])
        raise_first_error(reports)
        return next((report.change for report in reports if report.change is not None), None)

    def start_close_timeout(self) -> None:
        """Limits the wait for the other ranks to 60 s, because the run ends."""
        self._deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS

    def close(self, *, is_interrupted: bool = False) -> None:
        """Ends the threads. On ranks other than 0, first waits for the last write, for at most 60 s.

        Args:
            is_interrupted: Whether to skip the wait.
        """
        if self._thread is None:
            if self._channel is not None:
                self._channel.send(f"request/{next(self._request_ids)}", None)
            return
        self.start_close_timeout()
        with self._condition:
            if not is_interrupted:
                self._condition.wait_for(
                    lambda: self._reported_id >= self._staged_id or self._has_thread_ended, CLOSE_TIMEOUT_SECONDS
                )
            self._deadline = time.monotonic()
            self._condition.notify_all()
        self._thread.join(JOIN_TIMEOUT_SECONDS)

    def _serve(self) -> None:
        """Executes the requests of rank 0."""
        assert self._channel is not None
        try:
            with suppress(TimeoutError):  # this rank is ending
                for request_id in itertools.count(1):
                    if not self._handle_request(request_id):
                        break
            self._channel.send(f"ended/{self._rank}", None)
        except ConnectionError:  # rank 0 has ended
            pass
        finally:
            with self._condition:
                self._has_thread_ended = True
                self._condition.notify_all()

    def _handle_request(self, request_id: int) -> bool:
        """Waits for the next request, executes it and sends the report. Returns False if rank 0 is ending."""
        assert self._channel is not None
        request = self._channel.receive(f"request/{request_id}", self._pause)
        if request is None:
            return False
        self._channel.send(f"report/{request_id}/{self._rank}", self._make_report(request))
        if isinstance(request, WriteRequest):
            with self._condition:
                self._reported_id, self._report_time = request.save_id, time.monotonic()
                self._condition.notify_all()
        return True

    def _make_report(self, request: Any) -> Report:
        """Executes a request on this rank. Returns its report, with the error if it fails."""
        try:
            return self._execute(request)
        except Exception as error:  # noqa: BLE001 (rank 0 raises it)
            return Report(error=make_picklable(error))

    def _execute(self, request: Any) -> Report:
        if isinstance(request, ReadRequest):
            return self._read_files(request.files_by_rank[self._rank])
        assert isinstance(request, WriteRequest)
        with self._condition:
            self._condition.wait_for(lambda: self._staged_id >= request.save_id or self._should_stop())
        return self._write_shard(request.save_id, request.folder)

    def _request(self, request: object, seconds: float = inf) -> list[Report]:
        """Executes a request on all ranks and returns their reports. Runs on rank 0.

        Args:
            request: The request.
            seconds: Maximum time to wait for the reports, in seconds.
        """
        request_id, deadline = next(self._request_ids), time.monotonic() + seconds
        if self._channel is not None:
            self._channel.send(f"request/{request_id}", request)
        reports = [self._make_report(request)]
        reports += [self._receive_report(request_id, rank, deadline) for rank in range(1, self._world_size)]
        # after a timeout, the rank may still have to receive the request
        if self._channel is not None and not any(isinstance(report.error, TimeoutError) for report in reports):
            self._channel.delete(f"request/{request_id}")
        return reports

    def _choose_reader(self, rank: int) -> int:
        """Returns the rank that reads the shard of ``rank`` back. It is on another node if there are several.

        The node that wrote the shard would read its page cache and not the file system that all nodes share.
        """
        return (rank + self._world_size // 2) % self._world_size

    def _read_files(self, files: Mapping[str, StoredFile]) -> Report:
        return Report(change=find_content_problem(self._storage, files))

    def _write_shard(self, save_id: int, folder: str) -> Report:
        with self._write_lock:
            assert self._staged is not None, "no checkpoint was copied"
            assert self._staged_id == save_id, f"checkpoint {self._staged_id} was copied instead of {save_id}"
            plan, values = self._staged
            non_finite_names = _find_non_finite(values)
            if self._baseline_names is None:
                self._baseline_names = set(non_finite_names)
            new_names = [name for name in non_finite_names if name not in self._baseline_names]
            if new_names:
                return Report(non_finite_names=new_names)
            files = ShardFiles(self._storage, folder)
            results = files.write_shard(self._rank, plan.save_plan, values)
            return Report(files.files, results)

    def _receive_report(self, request_id: int, rank: int, deadline: float) -> Report:
        """Returns the report of a rank. It contains a TimeoutError if the rank is ending, or does not reply in time."""
        channel, key = self._channel, f"report/{request_id}/{rank}"
        assert channel is not None
        try:
            report: Report = channel.receive(key, lambda: self._pause_for(rank, deadline))
        except TimeoutError:
            return Report(error=TimeoutError(errno.ETIMEDOUT, "no reply before the timeout, or the process is ending"))
        channel.delete(key)
        return report

    def _pause(self) -> bool:
        """Waits until the next check for a message. Returns False if this rank should stop waiting."""
        with self._condition:
            # only rank 0 waits for reports, which are expected
            is_expected = (
                self._rank == 0
                or self._staged_id > self._reported_id
                or time.monotonic() < self._report_time + EXPECTED_SECONDS  # rank 0 reads back after each commit
            )
            if not self._should_stop():
                self._condition.wait(POLL_SECONDS if is_expected else IDLE_POLL_SECONDS)
        return not self._should_stop()

    def _pause_for(self, rank: int, deadline: float) -> bool:
        """Waits like :meth:`_pause`. Also returns False after ``deadline``, or if ``rank`` or its thread has ended.

        A process on another node cannot be queried.
        """
        assert self._channel is not None
        has_ended = self._channel.has(f"ended/{rank}") or self._processes[rank].is_running() is False
        return self._pause() and time.monotonic() < deadline and not has_ended

    def _should_stop(self) -> bool:
        return time.monotonic() >= self._deadline


def _check_loadable(plan: ShardPlan, values: Mapping[MetadataIndex, PlannedValue]) -> None:
    for item in plan.save_plan.items:
        value = values[item.index]
        if item.type == WriteItemType.BYTE_IO and isinstance(value, bytes):
            check_loadable(value, item.index.fqn)


def _find_non_finite(values: Mapping[MetadataIndex, PlannedValue]) -> list[str]:
    return [index.fqn for index, value in values.items() if isinstance(value, torch.Tensor) and not is_finite(value)]

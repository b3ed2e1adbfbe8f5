"""Compares ways to coordinate sharded saves: latency, and behavior if a rank ends, stops or cannot write.

    python scripts/benchmarks/shard_coordination.py [--ranks 2 4 8] [--saves 20] [--fault-ranks 4] [--kinds store gloo]

Real processes on this host save a small sharded state. Background threads coordinate each save in one of these ways:

- ``store``: ``ShardWriter``, whose threads exchange messages through a ``TCPStore``
- ``gloo``: the same with a second gloo process group, which only the threads use (``GlooShardWriter`` below)
- ``async_thread``, ``async_process``: torch's ``async_save`` with its thread or process over a gloo group. It writes no
  hashes, unsharded state, manifest or log.

First prints medians (minimum, maximum) in ms:

- ``save``: from its start in the training thread to its commit
- ``request``: a request to all ranks and their replies, directly after another one. ``async_save`` has no requests, so
  one of its collectives is measured instead.
- ``idle request``: the same after 3 s without a request

Then prints what the ranks observe after each fault, with the seconds since the fault, and the result of the next save:

- ``kill_1``, ``kill_0``: SIGKILL during a save, in which the rank needs 3 s to write
- ``kill_remote``: ``kill_1`` if rank 0 cannot query the process of rank 1, as on another node
- ``stall``: 20 s SIGSTOP of rank 1 during a save
- ``late_reply``: 5 s SIGSTOP of rank 1. Rank 0 waits 2 s for its reply to a request.
- ``give_up``: 40 s SIGSTOP of rank 1 during a save. Rank 0 waits 2 s for its reply and ends.
- ``disk_full``: rank 1 cannot write
- ``exit``: the main thread of rank 1 ends during a save. The others continue for 20 s and then send a request.
"""
# ruff: noqa: SLF001 (drives a ShardWriter without a Store that retries)

from __future__ import annotations

import argparse
import errno
import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save
from torch.distributed.checkpoint.utils import _DistWrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.tensor import Shard, distribute_tensor

from stormproof.checkpoint import CommitInfo, Store
from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.checkpoint.sharding.rank_channel import ReadRequest, Report, WriteRequest
from stormproof.checkpoint.sharding.shard_writer import JOIN_TIMEOUT_SECONDS, ShardWriter
from stormproof.checkpoint.storage import PosixStorage

KINDS = ["store", "gloo", "async_thread", "async_process"]
FAULTS = ["kill_1", "kill_0", "kill_remote", "stall", "late_reply", "give_up", "disk_full", "exit"]
WRITE_SECONDS, REPLY_SECONDS, LIMIT_SECONDS = 3.0, 2.0, 60.0
STALL_SECONDS = {"stall": 20.0, "late_reply": 5.0, "give_up": 40.0}
CONTINUE_SECONDS = 20.0
"""Time for which the other ranks continue after the end of rank 1, in seconds."""


# --- the alternative with a process group -----------------------------------------------------------------------------


def new_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    assert isinstance(group, dist.ProcessGroup)
    return group


class GlooChannel:
    """Sends Python objects between the threads of a job over a process group of their own.

    It has no timeouts: after one, gloo closes all connections of the group.
    """

    def __init__(self) -> None:
        self._group = new_group()

    def send(self, rank: int, message: Any) -> None:
        """Sends a picklable object. Raises RuntimeError if the rank has ended."""
        content = torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8)
        for tensor in (torch.tensor([len(content)]), content):
            dist.send(tensor, rank, self._group)

    def receive(self, rank: int) -> Any:
        """Waits for a message. Raises RuntimeError if the rank has ended."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, rank, self._group)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(content, rank, self._group)
        return pickle.loads(content.numpy().tobytes())


class GlooShardWriter(ShardWriter):
    """A ShardWriter whose threads use a GlooChannel. Its base class would have neither polls nor a RankChannel.

    On rank 0, one thread per other rank sends the requests and waits for the replies, so that a late reply of one rank
    blocks no other rank.
    """

    def __init__(self, storage: PosixStorage, rank: int) -> None:
        self._gloo = GlooChannel()
        super().__init__(storage, rank)
        others = range(1, self._world_size) if rank == 0 else ()
        self._requests = [SimpleQueue[tuple[object, Future[Report]]]() for _ in others]
        exchanges = [partial(self._exchange, *pair) for pair in zip(others, self._requests, strict=True)]
        self._jobs = [BackgroundJob(exchange, "shard-requests") for exchange in exchanges]

    def close(self, *, is_interrupted: bool = False) -> None:
        for requests in self._requests:
            requests.put((None, Future()))
        deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS
        for job in self._jobs:  # a thread in torch aborts the process at its end
            job.join(max(0.0, deadline - time.monotonic()))
        if self._thread is not None:
            super().close(is_interrupted=is_interrupted)

    def _exchange(self, rank: int, requests: SimpleQueue[tuple[object, Future[Report]]]) -> None:
        request: object = self
        while request is not None:
            request, reply = requests.get()
            try:
                self._gloo.send(rank, request)
                if request is not None:
                    reply.set_result(self._gloo.receive(rank))
            except RuntimeError as error:
                reply.set_result(Report(error=ConnectionError(errno.ECONNRESET, f"the process has ended: {error}")))

    def _serve(self) -> None:
        try:
            while (request := self._gloo.receive(0)) is not None:
                self._gloo.send(0, self._make_report(request))
                if isinstance(request, WriteRequest):
                    with self._condition:
                        self._reported_id = request.save_id
                        self._condition.notify_all()
        except RuntimeError:  # rank 0 has ended
            pass
        finally:
            with self._condition:
                self._has_thread_ended = True
                self._condition.notify_all()

    def _request(self, request: object, seconds: float = inf) -> list[Report]:
        deadline, replies = time.monotonic() + seconds, [Future[Report]() for _ in self._requests]
        for requests, reply in zip(self._requests, replies, strict=True):
            requests.put((request, reply))
        return [self._make_report(request), *(self._receive_reply(reply, deadline) for reply in replies)]

    def _receive_reply(self, reply: Future[Report], deadline: float) -> Report:
        while time.monotonic() < min(deadline, self._deadline):  # close() shortens the deadline
            if wait([reply], 0.5).done:
                return reply.result()
        return Report(error=TimeoutError(errno.ETIMEDOUT, "no reply before the timeout"))


def find_victim(fault: str) -> int:
    return 0 if fault == "kill_0" else 1


# --- savers -----------------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """Delays or prevents the second save of a rank."""

    name: str
    rank: int
    folder: Path

    def reach(self, save_id: int) -> None:
        """Called in the background, before a rank writes its shard."""
        if save_id != 2 or self.name in {"latency", "late_reply"}:
            return
        self.mark()
        if self.name != "disk_full" and self.rank == find_victim(self.name):
            time.sleep(WRITE_SECONDS)
        if self.name == "disk_full" and self.rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")

    def mark(self) -> None:
        (self.folder / f"in_flight_{self.rank}").touch()


class FaultyStorage(PosixStorage):
    """Storage of the checkpoints with a fault."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        super().__init__(folder)
        self._fault, self.save_id = fault, 0

    def put(self, name: str, write: Callable[[BinaryIO], object], *arguments: Any, **options: Any) -> None:
        if name.endswith(".distcp"):
            self._fault.reach(self.save_id)
        super().put(name, write, *arguments, **options)


class OwnSaver:
    """Saves with a ShardWriter."""

    def __init__(self, writer_class: type[ShardWriter], fault: Fault) -> None:
        self._storage, self._rank = FaultyStorage(fault.folder / "checkpoints", fault), fault.rank
        fault.folder.joinpath("checkpoints").mkdir(exist_ok=True)
        self._store = Store(fault.folder / "checkpoints")
        if self._rank == 0:
            self._store.begin_attempt(self._store.resolve())
        self._writer = writer_class(self._storage, self._rank)
        if fault.name == "kill_remote":
            self._writer._processes = [replace(process, host="another") for process in self._writer._processes]

    def save(self, state: Mapping[str, Any]) -> Future[Any]:
        self._storage.save_id += 1
        self._writer.plan(state)
        self._writer.stage()
        return BackgroundJob(self._commit if self._rank == 0 else self._wait, "saver")

    def request(self, seconds: float = inf) -> None:
        """Sends a request without work to all ranks. Raises the error of a rank."""
        if self._rank == 0:
            for report in self._writer._request(ReadRequest([{}] * dist.get_world_size()), seconds):
                if report.error is not None:
                    raise report.error

    def close(self) -> None:
        self._writer.close()

    def _commit(self) -> None:
        info = CommitInfo(step=self._storage.save_id, epoch=0, world_size=dist.get_world_size())
        self._store.commit_sharded(lambda folder: self._writer.write(folder, {"global_step": 1}), info, attempt=1)

    def _wait(self) -> None:
        writer = self._writer
        with writer._condition:
            writer._condition.wait_for(lambda: writer._reported_id >= writer._save_id or writer._has_thread_ended)
        if writer._reported_id < writer._save_id:
            raise ConnectionError("rank 0 has ended")


class FaultyWriter(FileSystemWriter):
    """torch's writer with a fault."""

    def __init__(self, folder: Path, fault: Fault, save_id: int) -> None:
        super().__init__(folder, thread_count=1)
        self._fault, self._save_id = fault, save_id

    def write_data(self, *arguments: Any, **options: Any) -> Any:
        self._fault.reach(self._save_id)
        return super().write_data(*arguments, **options)


class TorchSaver:
    """Saves with torch's ``async_save``."""

    def __init__(self, kind: AsyncCheckpointerType, fault: Fault) -> None:
        self._kind, self._fault, self._save_id = kind, fault, 0
        self._group = new_group()

    def save(self, state: Mapping[str, Any]) -> Future[Any]:
        self._save_id += 1
        return async_save(
            dict(state),
            storage_writer=FaultyWriter(self._fault.folder / f"{self._save_id}", self._fault, self._save_id),
            process_group=self._group,
            async_checkpointer_type=self._kind,
        )  # pyright: ignore[reportReturnType]  # AsyncSaveResponse only with an asynchronous stager

    def request(self, seconds: float = inf) -> None:
        """Executes one collective of torch's wrapper, which has no timeouts."""
        _DistWrapper(self._group, use_dist=True, coordinator_rank=0).all_reduce("request", lambda: 0, lambda _: 0)

    def close(self) -> None:
        pass


def make_saver(kind: str, fault: Fault) -> OwnSaver | TorchSaver:
    if kind in {"store", "gloo"}:
        return OwnSaver(ShardWriter if kind == "store" else GlooShardWriter, fault)
    return TorchSaver(AsyncCheckpointerType.THREAD if kind == "async_thread" else AsyncCheckpointerType.PROCESS, fault)


# --- one rank ---------------------------------------------------------------------------------------------------------


def log(event: str, value: object) -> None:
    print(json.dumps([event, time.time(), value]), flush=True)


def log_result(event: str, function: Callable[[], object]) -> None:
    try:
        function()
    except BaseException as error:  # noqa: BLE001 (logged)
        message = f"{type(error).__name__}: {error}".strip()
        log(event, message if len(message) < 200 else f"{message[:60]} … {message[-100:]}")  # torch adds tracebacks
    else:
        log(event, "ok")


def run_rank(kind: str, name: str, rank: int, ranks: int, port: int, folder: Path, saves: int) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    fault = Fault(name, rank, folder)
    saver = make_saver(kind, fault)
    mesh = init_device_mesh("cpu", (ranks,))
    state = {"state_dict": {"weight": distribute_tensor(torch.arange(1024.0), mesh, [Shard(0)])}}
    if name == "latency":
        measure_latency(saver, state, rank, saves)
    else:
        reach_fault(saver, state, fault)
    saver.close()
    log("closed", "ok")
    if name in {"latency", "stall", "late_reply", "disk_full"}:
        dist.barrier()
        dist.destroy_process_group()


def measure_latency(saver: OwnSaver | TorchSaver, state: Mapping[str, Any], rank: int, saves: int) -> None:
    saver.save(state).result()
    functions = {"save": lambda: saver.save(state).result(), "request": saver.request, "idle request": saver.request}
    for label, function in functions.items():
        count, pause = (5, 3.0) if label == "idle request" else (saves, 0.0)
        times = []
        for _ in range(count):
            time.sleep(pause)
            dist.barrier()
            start = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - start))
        dist.barrier()
        if rank == 0:
            log(label, times)


def reach_fault(saver: OwnSaver | TorchSaver, state: Mapping[str, Any], fault: Fault) -> None:
    saver.save(state).result()
    dist.barrier()
    if fault.name == "late_reply":
        if fault.rank == 1:
            fault.mark()
        wait_for_file(fault.folder / "stopped")
        log_result("request", lambda: saver.request(REPLY_SECONDS))
    else:
        future = saver.save(state)
        if fault.name == "exit" and fault.rank == 1:
            return
        if fault.name == "give_up" and isinstance(saver, OwnSaver) and fault.rank == 0:
            saver._writer._deadline = time.monotonic() + REPLY_SECONDS
        log_result("save", lambda: future.result(LIMIT_SECONDS))
    if fault.name == "exit":
        time.sleep(CONTINUE_SECONDS)
        if isinstance(saver, OwnSaver) and fault.rank == 0:
            log_result("request", saver.request)
    if fault.name in {"stall", "late_reply", "disk_full"}:
        dist.barrier()
        log_result("next save", lambda: saver.save(state).result(LIMIT_SECONDS))
    elif fault.name.startswith("kill"):
        os._exit(0)  # the launcher would end the job


def wait_for_file(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


# --- all ranks --------------------------------------------------------------------------------------------------------


def run_ranks(kind: str, name: str, ranks: int, saves: int = 0) -> tuple[list[list[Any]], list[str]]:
    """Returns the logged events of each rank, with the seconds after the fault, and how the processes ended."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        folder, port = Path(path), get_free_port()
        outputs = [(folder / f"output_{rank}").open("w+") for rank in range(ranks)]
        errors = [(folder / f"errors_{rank}").open("w+") for rank in range(ranks)]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", kind, name, str(rank), str(ranks), str(port), path, str(saves)],
                stdout=outputs[rank],
                stderr=errors[rank],
            )
            for rank in range(ranks)
        ]
        with ThreadPoolExecutor(ranks) as executor:
            codes = [executor.submit(wait_for_end, process) for process in processes]
            fault_time = 0.0 if name == "latency" else cause(name, folder, processes)
            ends = [f"{code} after {end - fault_time:.1f} s" for code, end in (future.result() for future in codes)]
        for rank, file in enumerate(errors):
            file.seek(0)
            if (content := file.read()) and os.environ.get("SHOW_ERRORS"):
                print(f"rank {rank}: {content[-2000:]}", file=sys.stderr)
        events = []
        for file in outputs:
            file.seek(0)
            lines = [json.loads(line) for line in file if line.startswith("[")]
            events.append([[event, moment - fault_time, value] for event, moment, value in lines])
        return events, ends


def cause(name: str, folder: Path, processes: list[subprocess.Popen[bytes]]) -> float:
    """Causes the fault during the second save, and returns its time."""
    victim = find_victim(name)
    wait_for_file(folder / f"in_flight_{victim}")
    start = time.time()
    if name.startswith("kill"):
        processes[victim].kill()
    elif name in STALL_SECONDS:
        processes[victim].send_signal(signal.SIGSTOP)
        (folder / "stopped").touch()
        time.sleep(STALL_SECONDS[name])
        processes[victim].send_signal(signal.SIGCONT)
    return start


def wait_for_end(process: subprocess.Popen[bytes]) -> tuple[int | str, float]:
    """Returns the exit code and the time of the end."""
    try:
        return process.wait(3 * LIMIT_SECONDS), time.time()
    except subprocess.TimeoutExpired:
        process.kill()
        return "killed because it did not end", time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4, 8], help="for the latency")
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--fault-ranks", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=FAULTS)
    arguments = parser.parse_args()
    for ranks in arguments.ranks:
        for kind in arguments.kinds:
            events, _ = run_ranks(kind, "latency", ranks, arguments.saves)
            times = {label: values for label, _, values in events[0] if isinstance(values, list)}
            summary = ", ".join(
                f"{label} {statistics.median(values):.1f} ({min(values):.1f}, {max(values):.1f})"
                for label, values in times.items()
            )
            print(f"{ranks} ranks, {kind:13}: {summary} ms", flush=True)
    for name in arguments.faults:
        for kind in arguments.kinds:
            if name in {"late_reply", "give_up"} and kind.startswith("async"):
                continue  # without timeouts
            events, ends = run_ranks(kind, name, arguments.fault_ranks)
            print(f"{name}, {kind}: processes ended with {', '.join(ends)}")
            for rank, entries in enumerate(events):
                for event, seconds, value in entries:
                    if event != "closed":
                        print(f"  rank {rank}: {event} after {seconds:.1f} s: {value!r}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, name, rank, ranks, port, folder, saves = sys.argv[2:]
        run_rank(kind, name, int(rank), int(ranks), int(port), Path(folder), int(saves))
    else:
        main()

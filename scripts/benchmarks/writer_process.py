"""Measures how much a thread and a process that write a checkpoint slow down training on the same cores.

    python scripts/benchmarks/writer_process.py [--megabytes 200] [--rounds 6] [--threads 2]

Training repeats steps of about 10 ms. In each round, in random order, each variant writes the same state: tensors of
4 MB in shared memory, as ``HostStager`` copies them. Prints for each variant, as medians:

- step: the median duration of steps during the write, divided by the median before it.
- lost: the time that all these steps took longer, divided by the time of a plain copy of the state.
- total: the duration of the write, divided by the same.

The parts show where the time goes:

- whole: everything that a checkpoint needs.
- serialize: writes the file of ``torch.save`` to /dev/null.
- hash: the same, and hashes it.
- write: writes the same bytes to a file and calls fsync, without ``torch.save``.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import nn

from stormproof.checkpoint.hashing import HashingFile, put_hashed
from stormproof.checkpoint.storage import PosixStorage

MEGABYTE = 1 << 20
SLICE_BYTES = 4 * MEGABYTE


def write_part(part: str, state: dict[str, torch.Tensor], folder: str) -> None:
    """Executes a part of the work of a checkpoint."""
    if part == "whole":
        put_hashed(PosixStorage(Path(folder)), "written.ckpt", lambda file: torch.save(state, file))
    elif part == "write":
        with Path(folder, "written.ckpt").open("wb") as file:
            file.writelines(memoryview(tensor.numpy()).cast("B") for tensor in state.values())
            file.flush()
            os.fsync(file.fileno())
    else:
        with Path(os.devnull).open("wb") as file:
            torch.save(state, cast("BinaryIO", HashingFile(cast("BinaryIO", file))) if part == "hash" else file)


def set_priority(priority: str) -> None:
    """Sets the priority of the calling thread: "normal", "nice" (19) or "idle"."""
    if priority == "nice":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    elif priority == "idle":
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def serve(connection: Connection, state: dict[str, torch.Tensor], folder: str, priority: str) -> None:
    """Writes in a process until None arrives."""
    torch.set_num_threads(1)
    set_priority(priority)
    while (part := connection.recv()) is not None:
        write_part(part, state, folder)
        connection.send(True)


class ThreadWriter:
    """Writes in a thread of the training process."""

    def __init__(self, state: dict[str, torch.Tensor], folder: str, priority: str) -> None:
        self._state, self._folder, self._priority = state, folder, priority

    def start(self, part: str) -> Callable[[], bool]:
        def run() -> None:
            set_priority(self._priority)
            write_part(part, self._state, self._folder)

        thread = threading.Thread(target=run)
        thread.start()
        return lambda: not thread.is_alive()

    def close(self) -> None:
        pass


class ProcessWriter:
    """Writes in another process, which maps the same memory."""

    def __init__(self, state: dict[str, torch.Tensor], folder: str, priority: str) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, state, folder, priority))
        self._process.start()

    def start(self, part: str) -> Callable[[], bool]:
        self._connection.send(part)

        def is_done() -> bool:
            if not self._connection.poll():
                return False
            self._connection.recv()
            return True

        return is_done

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()


class Training:
    """Repeats steps of a small network."""

    def __init__(self) -> None:
        self._network = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=1e-3)
        self._inputs = torch.randn(256, 512)

    def step(self) -> float:
        """Returns the duration of a step, in seconds."""
        start = time.perf_counter()
        self._optimizer.zero_grad()
        self._network(self._inputs).square().mean().backward()
        self._optimizer.step()
        return time.perf_counter() - start


def measure(training: Training, writer: ThreadWriter | ProcessWriter, part: str, copy_seconds: float) -> list[float]:
    """Returns "step", "lost" and "total" of one write."""
    before = statistics.median(training.step() for _ in range(40))
    start = time.perf_counter()
    is_done, steps = writer.start(part), list[float]()
    while not is_done():
        steps.append(training.step())
    total = time.perf_counter() - start
    return [
        statistics.median(steps) / before,
        sum(step - before for step in steps) / copy_seconds,
        total / copy_seconds,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch's operations")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--parts", nargs="+", default=["whole", "write", "hash", "serialize"])
    parser.add_argument("--priorities", nargs="+", default=["normal", "nice", "idle"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count = arguments.megabytes * MEGABYTE // SLICE_BYTES
    state = {f"{number}": torch.randn(SLICE_BYTES // 4).share_memory_() for number in range(count)}
    copies = []
    buffers = [torch.empty_like(tensor) for tensor in state.values()]
    for _ in range(6):
        start = time.perf_counter()
        for buffer, tensor in zip(buffers, state.values(), strict=True):
            buffer.copy_(tensor)
        copies.append(time.perf_counter() - start)
    copy_seconds = statistics.median(copies[1:])
    del buffers
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        writers: dict[str, Any] = {
            f"{kind.__name__} {priority}": kind(state, folder, priority)
            for kind in (ThreadWriter, ProcessWriter)
            for priority in arguments.priorities
        }
        results: dict[tuple[str, str], list[list[float]]] = {}
        training = Training()
        for _ in range(arguments.rounds + 1):
            runs = [(name, part) for name in writers for part in arguments.parts
                    if part == "whole" or name.endswith("normal")]  # fmt: skip
            for name, part in random.sample(runs, len(runs)):
                results.setdefault((name, part), []).append(measure(training, writers[name], part, copy_seconds))
        for writer in writers.values():
            writer.close()
    print(f"{arguments.megabytes} MB, {arguments.threads} threads, {os.cpu_count()} cores, copy {copy_seconds:.3f} s")
    print(f"{'writer':22}{'part':12}{'step':>20}{'lost':>20}{'total':>20}")
    for (name, part), rows in sorted(results.items(), key=lambda item: (item[0][1], item[0][0])):
        cells = [
            f"{statistics.median(column):.2f} [{min(column):.2f}, {max(column):.2f}]"
            for column in zip(*rows[1:], strict=True)
        ]
        print(f"{name:22}{part:12}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()

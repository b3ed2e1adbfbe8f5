"""Programs of the processes that :class:`stormproof.testing.StorageSuite` starts. Each gets a copy of the storage."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import BinaryIO

from stormproof.checkpoint.storage import Storage

KILL_POINTS = ("half written", "written", "synced", "renamed")
"""Moments of a write at which a process is killed."""


def write_with_others(storage: Storage, names: list[str], barrier: Barrier, created: Connection) -> None:
    """Creates those of ``names`` that do not exist, sends them, and increments "counter" once for each of ``names``.

    All processes read the same version before the first of them swaps.
    """
    process_id = os.getpid()
    barrier.wait()
    created.send([name for name in names if storage.put_if_absent(name, str(process_id).encode())])
    content, version = storage.read_with_version("counter")
    barrier.wait()
    for name in names:
        is_swapped = False
        while not is_swapped:
            next_content = f"{int(content.split()[0]) + 1} {process_id} {name}".encode()
            is_swapped = storage.compare_and_swap("counter", next_content, version) is not None
            content, version = storage.read_with_version("counter")


def swap_forever(storage: Storage, name: str, done: Connection) -> None:
    """Counts up from 1 under ``name``, and sends each number when it is stored."""
    version = None
    for number in itertools.count(1):
        version = storage.compare_and_swap(name, f"{number} {os.getpid()}".encode(), version)
        done.send(number)


def put_until_killed(storage: Storage, name: str, content: bytes, point: str, _: Connection) -> None:
    """Writes ``content``. Kills this process with SIGKILL at ``point``, one of :data:`KILL_POINTS`."""

    def write(file: BinaryIO) -> None:
        file.write(content[: len(content) // 2])
        kill_at(point)("half written")
        file.write(content[len(content) // 2 :])

    storage.put(name, write, kill_at(point))


def create_until_killed(storage: Storage, name: str, content: bytes, point: str, _: Connection) -> None:
    """Creates ``name``. Kills this process with SIGKILL at ``point``."""
    storage.put_if_absent(name, content, kill_at(point))


def kill_at(point: str) -> Callable[[str], None]:
    """Returns a callback for the stages of a write that kills this process at ``point``."""

    def on_stage(stage: str) -> None:
        if stage == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_stage

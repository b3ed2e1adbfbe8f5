"""Writes the ledger of this process. The file is created with the first event."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from stormproof.replay.ledger import VERSION
from stormproof.replay.pause import Pauses
from stormproof.replay.recorder.hashing import ALGORITHM

PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "pytorch_lightning": "pytorch-lightning",
    "lightning": "lightning",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "composer": "mosaicml",
    "torchdata": "torchdata",
    "stormproof": "stormproof",
}
"""Packages whose versions are recorded: distribution by module name."""
_MAX_ERRORS = 3  # of each hook


class LedgerWriter:
    """Writes events as JSON lines. Each line is written with one system call, so that a kill loses at most one.

    Args:
        folder: Folder of the ledgers.
        root: Working folder of the command.
        every: Interval of hashed steps.
        started_ns: Unix time at the start of the process, in nanoseconds.
    """

    def __init__(self, folder: Path, root: str, every: int, started_ns: int) -> None:
        self._folder = folder
        self._root = root
        self._every = every
        self._lock = threading.RLock()  # a signal handler may save while a line is written
        self._reset(started_ns)
        os.register_at_fork(after_in_child=lambda: self._reset(time.time_ns()))

    def _reset(self, started_ns: int) -> None:
        self._pauses = Pauses.from_environment(self._folder)
        self._started_ns = started_ns
        self._file: int | None = None
        self._errors = Counter[str]()
        self._lock = threading.RLock()

    @property
    def is_open(self) -> bool:
        """True after the first event of this process."""
        return self._file is not None

    def write(self, event: str, **fields: Any) -> None:
        """Writes an event, and stops this process if a pause point is there.

        Errors of the file system, such as a full disk, lose the event.
        """
        with self._lock:
            if self._file is None:
                self._open()
            line = {"event": event, **fields}
            self._write_line(line)
            if self._pauses is not None:
                self._pauses.after(line, find_rank()[0])

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Writes an error of the recorder as an event instead of raising it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (the recorder must never break the command)
            self.report(where, error)

    def report(self, where: str, error: Exception) -> None:
        """Writes an error of the recorder. Repeated errors of one hook are omitted."""
        self._errors[where] += 1
        if self._errors[where] <= _MAX_ERRORS:
            message = f"{type(error).__name__}: {error}"
            traceback = error.__traceback__
            while traceback is not None and traceback.tb_next is not None:
                traceback = traceback.tb_next
            if traceback is not None:
                code = traceback.tb_frame.f_code
                message += f" ({Path(code.co_filename).name}:{traceback.tb_lineno})"
            self.write("recorder_error", where=where, message=message[:500])

    def write_packages(self) -> None:
        """Writes the versions of the imported packages, and the rank, which may be known only after the start."""
        rank, world_size = find_rank()
        self.write("packages", rank=rank, world_size=world_size, packages=find_packages())

    def _open(self) -> None:
        path = self._folder / f"{self._started_ns}-{os.getpid()}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = -1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, flags, 0o644)
        except OSError:
            return
        rank, world_size = find_rank()
        start: dict[str, Any] = {
            "event": "start", "version": VERSION, "pid": os.getpid(), "rank": rank, "world_size": world_size,
            "argv": getattr(sys, "argv", []), "time": self._started_ns / 1e9, "hash": ALGORITHM, "root": self._root,
            "every": self._every, "packages": find_packages(),
        }  # fmt: skip
        self._write_line(start)

    def _write_line(self, line: dict[str, Any]) -> None:
        if self._file is not None and self._file >= 0:
            try:
                os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")
            except OSError:
                self._file = -1  # a later line would follow an incomplete one


def find_rank() -> tuple[int, int]:
    """Returns the rank and the world size, from the process group or else from the environment."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"), ("LOCAL_RANK", "WORLD_SIZE")):
        if os.environ.get(rank, "").isdigit():
            size = os.environ.get(world_size, "")
            return int(os.environ[rank]), int(size) if size.isdigit() else 1
    return 0, 1


def find_packages() -> dict[str, str]:
    """Returns the versions of those packages of :data:`PACKAGES` that are imported."""
    versions: dict[str, str] = {}
    for module, distribution in PACKAGES.items():
        if module in sys.modules:
            try:
                versions[module] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                versions[module] = "unknown"
    return versions

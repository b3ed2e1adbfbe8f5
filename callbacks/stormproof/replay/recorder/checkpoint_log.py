"""Writes save and load events, and follows checkpoint files that are renamed or copied."""

from __future__ import annotations

import io
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from stormproof.replay.recorder.session import Session, is_loader_worker
from stormproof.user_objects import defines, is_a, read_attributes, to_builtin

_MAX_ITEMS = 64  # of a container that is searched for tensors


class CheckpointLog:
    """Checkpoint files of this process."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._files: dict[str, int] = {}  # number of steps before the save, by real path of the file or folder
        self._buffered = _BufferedSaves()
        self._depth = threading.local()
        self.last_opened = {"r": "", "w": ""}  # last file by mode, for file objects without a name

    @contextmanager
    def save(self, target: Any) -> Iterator[None]:
        """Writes the events of a save to ``target``: a path, or a file object.

        A buffer in memory is a save of the file that receives it later.
        """
        with self._nested() as is_outer:
            path = self._begin(target) if is_outer else ""
            yield
            if is_outer:
                with self._session.writer.guard("save"):
                    if path:
                        self._write_save(path, "close")
                    elif isinstance(target, io.BytesIO):
                        self._buffered.add(target.getbuffer().nbytes, self._session.steps)

    def _begin(self, target: Any) -> str:
        with self._session.writer.guard("save"):
            self.finish()
            path = find_path(target)
            if not path and not isinstance(target, io.BytesIO):
                path = self.last_opened["w"]
            if path:
                self._files[path] = self._session.steps
                self._write_save(path, "open")
                return path
        return ""

    @contextmanager
    def load(self, source: Any) -> Iterator[list[Any]]:
        """Writes the event of a load from ``source`` if the yielded list is empty, or its value has tensors."""
        value: list[Any] = []
        with self._nested() as is_outer:
            yield value
        if is_outer:
            with self._session.writer.guard("load"):
                self.finish()
                path = find_path(source) or self._find_source(source)
                is_relevant = not value or path in self._files or has_tensors(value[0])
                if is_relevant and self._session.is_below_root(path) and not is_loader_worker():
                    self._session.writer.write("load", path=path, after_step=self._session.steps, time=time.time())

    def _find_source(self, source: Any) -> str:
        """Returns the last file that was opened for reading. A buffer must have its size."""
        path = self.last_opened["r"]
        if isinstance(source, io.BytesIO):
            return path if _find_size(path) == source.getbuffer().nbytes else ""
        return path

    @contextmanager
    def _nested(self) -> Iterator[bool]:
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        try:
            yield depth == 0
        finally:
            self._depth.value = depth

    def on_open(self, path: str, mode: str) -> None:
        """Considers a file that is opened for reading (``r``) or writing (``w``)."""
        self.last_opened[mode] = path
        if mode == "w" and path not in self._buffered.list_candidates() and self._buffered.is_candidate(path):
            self._files[path] = self._buffered.get_last_step()
            self._write_save(path, "open")

    def on_copy(self, source: str, target: str) -> None:
        """Considers a file or folder that is renamed or copied."""
        for path in [path for path in list(self._files) if path == source or path.startswith(source + os.sep)]:
            new_path = target + path[len(source) :]
            if path in self._buffered.list_candidates() and not self._finish_candidate(path):
                continue
            self._files[new_path] = self._files[path]
            self._write_save(new_path, "replace", **{"from": path})

    def finish(self) -> None:
        """Writes the end of files that received the bytes of a buffer."""
        for path in self._buffered.list_candidates():
            self._finish_candidate(path)

    def _finish_candidate(self, path: str) -> bool:
        """Writes the end of a file if it received a buffer. Otherwise, the file is no checkpoint."""
        after_step = self._buffered.resolve(path)
        if after_step is None:
            self._files.pop(path, None)
            return False
        self._files[path] = after_step
        self._write_save(path, "close")
        return True

    def _write_save(self, path: str, phase: str, **fields: str) -> None:
        if self._session.is_below_root(path) and not is_loader_worker():
            after_step = self._files[path]
            self._session.writer.write(
                "save", path=path, phase=phase, after_step=after_step, time=time.time(), **fields
            )


def find_path(target: Any) -> str:
    """Returns the real path of a path or of an open file, or an empty string if it has none.

    Example:
        >>> find_path(io.BytesIO())
        ''
    """
    if not is_a(target, str | bytes | os.PathLike):
        with suppress(Exception):  # code of the user
            target = target.name
    if is_a(target, str | bytes | os.PathLike) and target:
        return os.path.realpath(os.fsdecode(target))
    return ""


def has_tensors(value: Any, depth: int = 0) -> bool:
    """Returns whether a nested value contains a tensor or a numeric array.

    Example:
        >>> has_tensors({"step": 3, "state": [torch.zeros(2)]}), has_tensors({"step": 3})
        (True, False)
    """
    value = to_builtin(value)
    if is_a(value, torch.Tensor):
        return True
    if type(value).__module__ == "numpy" and defines(value, "dtype"):
        return value.dtype.kind in "fiu" and value.ndim > 0
    if depth > 4 or is_a(value, str | bytes | int | float):
        return False
    if is_a(value, dict):
        return any(has_tensors(item, depth + 1) for item in list(value.values())[:_MAX_ITEMS])
    if is_a(value, list | tuple):
        return any(has_tensors(item, depth + 1) for item in value[:_MAX_ITEMS])
    attributes = read_attributes(value)
    return bool(attributes) and has_tensors(attributes, depth + 1)


_MAX_BUFFERS = 4


class _BufferedSaves:
    """Checkpoints in memory, and files that may receive them.

    The write of a buffer is not visible: a file that is opened for writing is a candidate, and it has received a buffer
    if it has the same size.
    """

    def __init__(self) -> None:
        self._buffers = deque[tuple[int, int]](maxlen=_MAX_BUFFERS)
        self._candidates: set[str] = set()

    def add(self, size: int, after_step: int) -> None:
        """Adds a buffer of ``size`` bytes that was saved after a step."""
        self._buffers.append((size, after_step))

    def is_candidate(self, path: str) -> bool:
        """Returns whether an opened file may receive a buffer."""
        if self._buffers:
            self._candidates.add(path)
        return bool(self._buffers)

    def get_last_step(self) -> int:
        """Returns the number of steps before the last buffered save."""
        return self._buffers[-1][1]

    def list_candidates(self) -> list[str]:
        """Returns the files that may have received a buffer."""
        return list(self._candidates)

    def resolve(self, path: str) -> int | None:
        """Returns the number of steps before the save that a candidate has received, or None. Forgets both."""
        self._candidates.discard(path)
        size = _find_size(path)
        for buffer in self._buffers:
            if buffer[0] == size:
                self._buffers.remove(buffer)
                return buffer[1]
        return None


def _find_size(path: str) -> int:
    """Returns the size of a file in bytes, or -1 if it does not exist. Another thread may delete it at any time."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1

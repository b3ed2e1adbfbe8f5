"""Connects a worker with the run that it has started, which asks whether to continue.

Only rank 0 of the run connects, on the worker's machine. Messages are lines of JSON on a Unix socket that only this
user can open.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypedDict

MAX_PATH_BYTES = 100
"""Maximum bytes of the path of a socket. Linux allows 107, other systems fewer."""


class BeginMessage(TypedDict):
    """Sent when training starts.

    Attributes:
        kind: Message type.
        step: Step at which training starts or resumes.
        length: Steps of the whole run. Infinite if unlimited.
        sizes: Number of parameters and latency in seconds, if requested, by name.
        samples: Sizes of the ``training`` and the ``validation`` split. None if unknown.
        gpus: Number of GPUs.
    """

    kind: Literal["begin"]
    step: int
    length: float
    sizes: dict[str, float]
    samples: dict[str, int] | None
    gpus: int


class ValidationMessage(TypedDict):
    """Sent after each validation.

    Attributes:
        kind: Message type.
        step: Current step.
        values: Values of the requested metrics, by logged name.
        critical: Titles of the critical findings.
    """

    kind: Literal["validated"]
    step: int
    values: dict[str, float]
    critical: list[str]


Message = BeginMessage | ValidationMessage


class Reply(TypedDict):
    """Reply to a message.

    Attributes:
        verdict: Action of the run.
        reason: One line. Empty if the run continues.
    """

    verdict: Literal["continue", "pause", "prune"]
    reason: str


class WorkerServer:
    """The worker's end of the connection, used by one run at a time.

    Attributes:
        address: Path of the socket.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="stormproof-"))  # accessible only to this user
        if len(os.fsencode(self._folder / "line")) > MAX_PATH_BYTES:
            self._folder.rmdir()
            self._folder = Path(tempfile.mkdtemp(prefix="stormproof-", dir="/tmp"))
        self.address = str(self._folder / "line")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(1)

    def serve(self, handle_message: Callable[[Message], Reply], is_running: Callable[[], bool]) -> None:
        """Replies to the messages of a run until it has ended.

        Args:
            handle_message: Returns the reply to a message.
            is_running: Returns True if the run is active.
        """
        self._listener.settimeout(0.02)
        while is_running():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with connection:
                _serve_connection(connection, handle_message, is_running)

    def close(self) -> None:
        """Closes the socket."""
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class WorkerClient:
    """The run's end of the connection. If the worker disappears, it sends SIGTERM to the run, which saves and ends.

    Raises:
        OSError: If no worker listens.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._answers: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._is_closing = False
        threading.Thread(target=self._receive, name="search line", daemon=True).start()

    def ask(self, message: Message) -> Reply:
        """Sends a message and returns the reply. If the worker is gone, the reply is to pause."""
        try:
            self._socket.sendall(f"{json.dumps(message)}\n".encode())
        except OSError:
            return {"verdict": "pause", "reason": "the worker of its search is gone"}
        return self._answers.get() or {"verdict": "pause", "reason": "the worker of its search is gone"}

    def close(self) -> None:
        """Closes the connection without a signal."""
        self._is_closing = True
        with suppress(OSError):  # the worker is gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self) -> None:
        with self._socket.makefile("r") as lines:
            try:
                for line in lines:
                    self._answers.put(json.loads(line))
            except (OSError, ValueError):  # the connection ended within a line
                pass
        self._answers.put(None)
        if not self._is_closing:
            os.kill(os.getpid(), signal.SIGTERM)


def _serve_connection(
    connection: socket.socket, handle_message: Callable[[Message], Reply], is_running: Callable[[], bool]
) -> None:
    connection.settimeout(0.02)
    buffer = b""
    while True:
        try:
            chunk = connection.recv(65536)
        except TimeoutError:
            if not is_running():
                return
            continue
        except OSError:
            return
        if not chunk:
            return
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            connection.sendall(f"{json.dumps(handle_message(json.loads(line)))}\n".encode())

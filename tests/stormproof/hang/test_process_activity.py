from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from stormproof.hang.process_activity import BYTES_PER_SECOND, ProcessActivity, descendants
from tests.support.waiting import wait_for

SPIN = "import time\nwhile time.process_time() < 60: pass"
WAIT = "import sys\nsys.stdin.read()"


@contextmanager
def start_program(text: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_growing(work: ProcessActivity, by: float, within: float = 30.0) -> bool:
    """Whether it sees so much more work soon."""
    before = work.seconds()
    try:
        wait_for(lambda: work.seconds() - before >= by, within)
    except TimeoutError:
        return False
    return True


def in_a_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def spin() -> None:
    """In one call of C, which lets other threads run."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)


def test_waiting_is_no_work_and_neither_is_asking():
    finished = threading.Event()
    thread = in_a_thread(finished.wait)
    work = ProcessActivity(thread.ident or 0)
    before = work.seconds()
    for _ in range(50):
        work.seconds()
    assert work.seconds() - before < 0.05
    finished.set()
    thread.join()


@pytest.mark.slow
def test_what_a_thread_computes_is_work():
    thread = in_a_thread(spin)
    assert is_growing(ProcessActivity(thread.ident or 0), 0.2)
    thread.join()


@pytest.mark.slow
def test_with_a_gpu_what_spins_at_one_place_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    thread = in_a_thread(spin)
    work = ProcessActivity(thread.ident or 0)
    work.seconds()
    assert not is_growing(work, 0.2, within=0.6)
    thread.join()


@pytest.mark.slow
def test_with_a_gpu_what_moves_on_is_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    end = time.monotonic() + 30.0
    stop = threading.Event()

    def moves() -> None:
        while time.monotonic() < end and not stop.is_set():
            sum(range(100))

    thread = in_a_thread(moves)
    assert is_growing(ProcessActivity(thread.ident or 0), 0.2)
    stop.set()
    thread.join()


@pytest.mark.slow
def test_what_a_program_does_that_was_started_is_work_unless_it_is_another_rank():
    with start_program(SPIN) as process:
        assert is_growing(ProcessActivity(threading.get_ident()), 0.2)
        assert not is_growing(ProcessActivity(threading.get_ident(), [process.pid]), 0.2, within=0.6)


def test_what_was_written_is_work(tmp_path: Path):
    if not hasattr(psutil.Process(), "io_counters"):
        pytest.skip("this system does not tell what a process writes")
    work = ProcessActivity(threading.get_ident())
    before = work.seconds()
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(3 * BYTES_PER_SECOND))
    assert work.seconds() - before > 2.9


def test_what_was_received_is_work():
    work = ProcessActivity(threading.get_ident())
    before = work.seconds()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
        with sender, receiver:
            thread = in_a_thread(lambda: sender.sendall(bytes(3 * BYTES_PER_SECOND)))
            received = 0
            while received < 3 * BYTES_PER_SECOND:
                received += len(receiver.recv(65536))
            thread.join()
            assert work.seconds() - before > 2.9


def test_descendants_are_all_but_those_of_whom_is_left_out():
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {WAIT!r}])"
    with start_program(nested) as parent, start_program(WAIT) as sibling:
        wait_for(psutil.Process(parent.pid).children, 30.0)
        (child,) = psutil.Process(parent.pid).children()
        current_process = psutil.Process(os.getpid())
        assert {process.pid for process in descendants(current_process)} >= {parent.pid, child.pid, sibling.pid}
        without = {process.pid for process in descendants(current_process, [parent.pid])}
        assert sibling.pid in without
        assert not without & {parent.pid, child.pid}
        child.kill()

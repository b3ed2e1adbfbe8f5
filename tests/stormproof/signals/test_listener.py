import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from stormproof.signals.listener import TERMINATION_SIGNALS, SignalListener, signals_blocked_in_children


@pytest.fixture
def hearing() -> Iterator[SignalListener]:
    """In a thread that blocks none of the signals, nor ignores them as what runs in the background may."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in TERMINATION_SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATION_SIGNALS)
    listener = SignalListener()
    listener.listen()
    yield listener
    listener.stop()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", TERMINATION_SIGNALS)
def test_a_child_that_is_born_deaf_outlives_the_signal_and_its_parent_hears_it_afterwards(
    number: signal.Signals, hearing: SignalListener
):
    with signals_blocked_in_children():
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        signal.pthread_kill(threading.get_ident(), number)  # to the process, another thread would hear it at once
        while_blocked = hearing.received_signal
    child.send_signal(number)
    answer, _ = child.communicate(b"alive", timeout=20)
    assert (answer, child.returncode) == (b"alive", 0)
    assert (while_blocked, hearing.received_signal) == (None, number)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_a_signal_counts_from_its_arrival_though_the_main_thread_is_in_a_long_operator(hearing: SignalListener):
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Timer(0.05, send)
    sender.start()
    start = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
    ended = time.monotonic()
    sender.join()
    assert hearing.received_signal is signal.SIGUSR1
    assert ended - start > 0.2
    assert 0 <= hearing.received_at - sent[0] < 0.5 * (ended - sent[0])


def test_two_listeners_may_stop_in_any_order_and_leave_the_earlier_wakeup_descriptor(hearing: SignalListener):
    read, write = os.pipe()
    os.set_blocking(write, False)
    hearing.stop()
    signal.set_wakeup_fd(write)
    first, second = SignalListener(), SignalListener()
    first.listen()
    second.listen()
    assert "signal-arrivals" in threads()
    first.stop()
    signal.raise_signal(signal.SIGTERM)
    second.stop()
    assert (first.received_signal, second.received_signal) == (None, signal.SIGTERM)
    assert "signal-arrivals" not in threads()
    assert os.read(read, 8) == bytes([signal.SIGTERM])
    assert signal.set_wakeup_fd(-1) == write
    os.close(read)
    os.close(write)


def test_a_forked_child_reports_no_signal_to_its_parent(hearing: SignalListener):
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (hearing.received_signal, hearing.arrived_at) == (None, 0.0)


def test_a_forked_child_that_lives_on_does_not_keep_the_thread(hearing: SignalListener):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent closes its end
        os._exit(0)
    hearing.stop()
    assert "signal-arrivals" not in threads()
    os.close(write)
    os.close(read)
    os.waitpid(child, 0)

"""Signals that ask a process to end: noted, and answered when it suits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers, launchers and people send before they kill: SLURM and Kubernetes TERM, others USR1 or USR2."""

PATIENCE_SECONDS = 1.0


@contextmanager
def children_born_deaf() -> Iterator[None]:
    """Processes that are started meanwhile never hear the signals that ask to end; this one hears them afterwards.

    SLURM may send them to every process of a job, those in sessions of their own included. A blocked signal stays
    blocked in a new program, unless that asks for it; one that is ignored does not, in a program written in Go.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Arrivals:
    """Records when signals arrive, even while the main thread is in a long operator or a collective.

    Python runs signal handlers between two instructions of the main thread. The interpreter writes the number of a
    signal to the wakeup descriptor at once, and a thread reads it. An earlier wakeup descriptor still gets each number.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        """Adds a listener. The first one starts the thread. Only the main thread may call it."""
        if not self.listeners:
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._file = None if self._before == -1 else os.fstat(self._before).st_ino
            self._thread = threading.Thread(target=self._read_signals, name="signal-arrivals", daemon=True)
            self._thread.start()
        self.listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Removes a listener. The last one stops the thread and restores the earlier wakeup descriptor."""
        self.listeners.remove(listener)
        if self.listeners:
            return
        current = signal.set_wakeup_fd(self._before)
        if current != self._write:  # somebody has set another one since
            signal.set_wakeup_fd(current)
        os.write(self._write, _END)  # a forked process may still have the descriptor, so that closing it ends nothing
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Closes the descriptors."""
        os.close(self._write)
        os.close(self._read)

    def _read_signals(self) -> None:
        ends = False
        while not ends:
            numbers = os.read(self._read, 64)
            ends = _END in numbers
            if any(number in ASKING for number in numbers):
                for listener in tuple(self.listeners):
                    listener.arrived_at = listener.arrived_at or time.monotonic()
            with suppress(OSError):
                if self._before != -1 and os.fstat(self._before).st_ino == self._file:  # it is still the same file
                    os.write(self._before, numbers.replace(_END, b""))


_END = b"\0"
"""Written to end the thread."""
_ARRIVALS = _Arrivals()


def _reset_in_child() -> None:
    """Stops recording in a forked child, which receives signals of its own."""
    if _ARRIVALS.listeners:
        signal.set_wakeup_fd(-1)
        _ARRIVALS.close()
        _ARRIVALS.listeners.clear()


os.register_at_fork(after_in_child=_reset_in_child)


class Listener:
    """Notes the first signal that asks this process to end; its handlers do nothing else.

    A SIGINT that comes a second or more after it, from somebody who does not want to wait, raises KeyboardInterrupt;
    one that comes at once is the same Ctrl-C, which some programs pass on twice. A signal that is ignored stays
    ignored. What C code has set, as ``faulthandler.register`` does, Python cannot give back.

    Args:
        impatient: whether the second one raises.

    Attributes:
        received: the first signal that came; None as long as there is none.
        at: when it arrived, by ``time.monotonic``; 0 before.
        arrived_at: when the first one arrived, even if the main thread has not run its handler yet; 0 before.

    Example:
        >>> listener = Listener()
        >>> listener.listen()
        True
        >>> signal.raise_signal(signal.SIGUSR1)
        >>> listener.received.name
        'SIGUSR1'
        >>> listener.stop()
    """

    def __init__(self, impatient: bool = True) -> None:
        self._impatient = impatient
        self.received: signal.Signals | None = None
        self.at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self.arrived_at = 0.0

    def listen(self) -> bool:
        """Takes the signals over; False in a thread, where Python lets nobody do that."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if not self._before:
            heard = [each for each in ASKING if signal.getsignal(each) is not signal.SIG_IGN]
            self._before = {each: signal.signal(each, self._note) for each in heard}
            if self._before:
                _ARRIVALS.add(self)
        return True

    def stop(self) -> None:
        """Gives each signal back to whom it had belonged; what was noted stays."""
        if self._before:
            _ARRIVALS.remove(self)  # first, as it joins a thread: signals that arrive meanwhile must be recorded
        for each, handler in self._before.items():
            if signal.getsignal(each) == self._note:  # else somebody has taken it over since
                signal.signal(each, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.at = self.arrived_at or time.monotonic()
            self.received = signal.Signals(number)
        elif number == signal.SIGINT and self._impatient and time.monotonic() - self.at >= PATIENCE_SECONDS:
            raise KeyboardInterrupt

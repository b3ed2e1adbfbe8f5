"""Records termination signals, so that the process can exit at a suitable time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that schedulers, launchers and users send before SIGKILL. SLURM can be configured to send SIGUSR1 or
SIGUSR2."""

SECOND_SIGINT_SECONDS = 1.0
"""Minimum delay of a second Ctrl-C. Some programs forward the first one, so that it arrives twice."""


@contextmanager
def signals_blocked_in_children() -> Iterator[None]:
    """Blocks termination signals in processes started within the block. This process receives them afterwards.

    SLURM may send them to every process of a job, including those in other sessions. The signals are blocked and not
    ignored, because programs written in Go do not inherit ignored signals.
    """
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATION_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


@contextmanager
def termination_handler(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles termination signals with ``handler`` within the block, then restores the previous handlers."""
    previous_handlers = {signum: signal.signal(signum, handler) for signum in TERMINATION_SIGNALS}
    try:
        yield
    finally:
        for signum, previous_handler in previous_handlers.items():
            signal.signal(signum, previous_handler)


class _SignalRecorder:
    """Records when signals arrive, even while the main thread is in a long operator or a collective.

    Python runs signal handlers between two instructions of the main thread. The interpreter writes the number of a
    signal to the wakeup descriptor at once, and a thread reads it. An earlier wakeup descriptor still gets each number.
    """

    def __init__(self) -> None:
        self.listeners: list[SignalListener] = []

    def add(self, listener: SignalListener) -> None:
        """Adds a listener. The first one starts the thread. Only the main thread may call it."""
        if not self.listeners:
            self._read_descriptor, self._write_descriptor = os.pipe()
            os.set_blocking(self._write_descriptor, False)
            self._previous_descriptor = signal.set_wakeup_fd(self._write_descriptor, warn_on_full_buffer=False)
            self._previous_inode = (
                None if self._previous_descriptor == -1 else os.fstat(self._previous_descriptor).st_ino
            )
            self._thread = threading.Thread(target=self._read_signals, name="signal-arrivals", daemon=True)
            self._thread.start()
        self.listeners.append(listener)

    def remove(self, listener: SignalListener) -> None:
        """Removes a listener. The last one stops the thread and restores the earlier wakeup descriptor."""
        self.listeners.remove(listener)
        if self.listeners:
            return
        current_descriptor = signal.set_wakeup_fd(self._previous_descriptor)
        if current_descriptor != self._write_descriptor:  # other code has set a descriptor since
            signal.set_wakeup_fd(current_descriptor)
        # closing the descriptor would not end the thread: a forked process may still have a copy
        os.write(self._write_descriptor, _STOP_BYTE)
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Closes the descriptors."""
        os.close(self._write_descriptor)
        os.close(self._read_descriptor)

    def _read_signals(self) -> None:
        should_stop = False
        while not should_stop:
            signal_numbers = os.read(self._read_descriptor, 64)
            should_stop = _STOP_BYTE in signal_numbers
            if any(signal_number in TERMINATION_SIGNALS for signal_number in signal_numbers):
                for listener in tuple(self.listeners):
                    listener.arrived_at = listener.arrived_at or time.monotonic()
            with suppress(OSError):
                if (
                    self._previous_descriptor != -1
                    and os.fstat(self._previous_descriptor).st_ino == self._previous_inode
                ):  # the descriptor may have been closed and reused
                    os.write(self._previous_descriptor, signal_numbers.replace(_STOP_BYTE, b""))


_STOP_BYTE = b"\0"
"""Byte that ends the thread."""
_RECORDER = _SignalRecorder()


def has_signal_arrived() -> bool:
    """Returns whether an active listener has recorded a termination signal."""
    return any(listener.arrived_at or listener.received_signal is not None for listener in tuple(_RECORDER.listeners))


def _reset_in_child() -> None:
    """Stops recording in a forked child, which receives its own signals."""
    if _RECORDER.listeners:
        signal.set_wakeup_fd(-1)
        _RECORDER.close()
        _RECORDER.listeners.clear()


os.register_at_fork(after_in_child=_reset_in_child)


class SignalListener:
    """Records the first termination signal.

    A SIGINT at least :data:`SECOND_SIGINT_SECONDS` after the first signal raises KeyboardInterrupt. A signal that is
    ignored stays ignored. Handlers set by C code, such as ``faulthandler.register``, cannot be restored by Python.

    Args:
        raise_on_second_sigint: Whether a second SIGINT raises KeyboardInterrupt.

    Attributes:
        received_signal: First signal. None before it arrives.
        received_at: Time of its arrival, from ``time.monotonic``. 0 before it arrives.
        arrived_at: Same, but set even if the main thread has not run the signal handler yet.

    Example:
        >>> listener = SignalListener()
        >>> listener.listen()
        True
        >>> signal.raise_signal(signal.SIGUSR1)
        >>> listener.received_signal.name
        'SIGUSR1'
        >>> listener.stop()
    """

    def __init__(self, raise_on_second_sigint: bool = True) -> None:
        self._raise_on_second_sigint = raise_on_second_sigint
        self.received_signal: signal.Signals | None = None
        self.received_at = 0.0
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self.arrived_at = 0.0

    def listen(self) -> bool:
        """Installs the handlers. Returns False outside the main thread, where Python does not allow handlers."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if not self._previous_handlers:
            active_signals = [
                signal_number
                for signal_number in TERMINATION_SIGNALS
                if signal.getsignal(signal_number) is not signal.SIG_IGN
            ]
            self._previous_handlers = {
                signal_number: signal.signal(signal_number, self._handle_signal) for signal_number in active_signals
            }
            if self._previous_handlers:
                _RECORDER.add(self)
        return True

    def stop(self) -> None:
        """Restores the previous handlers. Keeps the recorded signal."""
        if self._previous_handlers:
            _RECORDER.remove(self)  # first, as it joins a thread: signals that arrive meanwhile must be recorded
        for signal_number, handler in self._previous_handlers.items():
            if signal.getsignal(signal_number) == self._handle_signal:  # other code may have replaced the handler
                signal.signal(signal_number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers = {}

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received_signal is None:
            self.received_at = self.arrived_at or time.monotonic()
            self.received_signal = signal.Signals(number)
        elif (
            number == signal.SIGINT
            and self._raise_on_second_sigint
            and time.monotonic() - self.received_at >= SECOND_SIGINT_SECONDS
        ):
            raise KeyboardInterrupt

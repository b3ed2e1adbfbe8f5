import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from stormproof.signals import ASKING, Listener, children_born_deaf


@pytest.fixture
def hearing() -> Iterator[Listener]:
    """In a thread that blocks none of the signals, nor ignores them as what runs in the background may."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in ASKING}
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    listener = Listener()
    listener.listen()
    yield listener
    listener.stop()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKING)
def test_a_child_that_is_born_deaf_outlives_the_signal_and_its_parent_hears_it_afterwards(
    number: signal.Signals, hearing: Listener
):
    with children_born_deaf():
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        signal.pthread_kill(threading.get_ident(), number)  # to the process, another thread would hear it at once
        while_blocked = hearing.received
    child.send_signal(number)
    answer, _ = child.communicate(b"alive", timeout=20)
    assert (answer, child.returncode) == (b"alive", 0)
    assert (while_blocked, hearing.received) == (None, number)

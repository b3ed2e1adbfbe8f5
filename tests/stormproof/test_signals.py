import signal
import subprocess
import threading

import pytest

from stormproof.signals import ASKING, Listener, children_born_deaf


@pytest.mark.parametrize("number", ASKING)
def test_a_child_that_is_born_deaf_outlives_the_signal_and_its_parent_hears_it_afterwards(number: signal.Signals):
    listener = Listener()
    listener.listen()
    try:
        with children_born_deaf():
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            signal.pthread_kill(threading.get_ident(), number)  # to the process, another thread would hear it at once
            assert listener.received is None
        assert listener.received is number
    finally:
        listener.stop()
    child.send_signal(number)
    answer, _ = child.communicate(b"alive", timeout=20)
    assert (answer, child.returncode) == (b"alive", 0)

"""When it watches; that it notices, and what it takes for no hang, is for tests/faults/test_hangs.py."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof import HangWatch, hang_watch
from stormproof.hang.thread_frames import is_debugged
from stormproof.long_waits import get_current_wait, long_wait
from tests.support.small_fits import BOTH_PACKAGES, LIGHTNING_WARNING_FILTERS, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


def is_watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hang-watch"]


class Look(pl.Callback):
    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.threads += is_watching()


@BOTH_PACKAGES
def test_it_watches_while_a_trainer_runs_and_not_in_between(lightning: Any):
    look = type("Looks", (Look, lightning.Callback), {})()
    running = make_trainer(lightning, callbacks=[HangWatch(), look])
    for fits in (1, 2):
        running.fit_loop.max_epochs = fits
        running.fit(make_module(lightning), make_loader())
        assert len(set(look.threads)) == fits
        assert all(thread.daemon for thread in look.threads)
        assert not is_watching()


def test_it_watches_no_longer_after_an_error():
    class Fails(Look):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end()
            raise ValueError("mine")

    fails = Fails()
    with pytest.raises(ValueError, match="mine"):
        make_trainer(callbacks=[fails, HangWatch()]).fit(make_module(), make_loader())
    assert fails.threads
    assert not is_watching()


def test_a_trainer_whose_callbacks_fail_in_the_end_is_not_watched_either():
    """Then nobody tells it."""

    class Fails(Look):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end()
            raise ValueError("mine")

        def on_exception(self, *args: Any) -> None:
            raise ValueError("mine again")

    fails = Fails()
    with pytest.raises(ValueError, match="mine again"):
        make_trainer(callbacks=[fails, HangWatch(timeout_seconds=1.0)]).fit(make_module(), make_loader())
    fails.threads[0].join(10)
    assert not is_watching()


def test_an_error_that_comes_while_the_process_is_being_ended_goes_no_further(monkeypatch: pytest.MonkeyPatch):
    """As where another rank has left already, and a collective fails."""
    waited: list[float] = []
    watch = HangWatch()

    class Fails(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            assert watch._watchdog is not None
            watch._watchdog._is_exiting = True
            monkeypatch.setattr(hang_watch, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
            raise ValueError("connection closed by peer")

    with pytest.raises(ValueError, match="connection closed"):
        make_trainer(callbacks=[Fails(), watch]).fit(make_module(), make_loader())
    assert waited == [2 * hang_watch.REPORT_SECONDS]


def test_a_fast_dev_run_is_not_watched():
    look = Look()
    make_trainer(callbacks=[HangWatch(), look], fast_dev_run=True).fit(make_module(), make_loader())
    assert not look.threads


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_time_that_is_none_is_named(seconds: float):
    with pytest.raises(ValueError, match="`timeout_seconds` must be above 0"):
        HangWatch(seconds)


def test_every_hook_of_every_stage_is_progress():
    told_otherwise = {"on_exception", "on_before_zero_grad"}
    hooks = {name for name in vars(pl.Callback) if name.startswith("on_")} - told_otherwise
    assert {name for name in hooks if getattr(HangWatch, name) is getattr(pl.Callback, name)} == set()
    watch = HangWatch()
    for result, name in enumerate(sorted(hooks)):
        assert watch.progress == result
        getattr(watch, name)(None, None)


def test_waits_may_lie_in_one_another_and_end_with_an_error():
    def fails() -> None:
        with long_wait("two"):
            assert get_current_wait() == "two"
            raise ValueError("mine")

    with long_wait("one"):
        with pytest.raises(ValueError, match="mine"):
            fails()
        assert get_current_wait() == "one"
    assert get_current_wait() is None


def test_a_traced_frame_and_one_of_a_debugger_are_debugged():
    def traced() -> bool:
        sys._getframe().f_trace = lambda *args: None
        return is_debugged(sys._getframe())

    assert traced()
    names = {"__name__": "pdb", "look": lambda: is_debugged(sys._getframe())}
    assert eval("look()", names)
    assert not is_debugged(None)

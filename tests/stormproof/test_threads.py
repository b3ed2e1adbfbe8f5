"""Every thread that a callback starts has ended when the trainer returns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.tuner import Tuner
from tqdm import TMonitor

import stormproof
from stormproof import CheckpointRecovery, HangWatch, hang_watch
from stormproof.checkpoint import Lease, Store, async_writer
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.hang.process_activity import ProcessActivity
from tests.stormproof.test_callback_contract import ARGUMENTS, EXPORTED
from tests.support.small_fits import (
    LIGHTNING_WARNING_FILTERS,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:DivergenceGuard rolls back to checkpoints.*"),
]


class Fails(pl.Callback):
    """Raises at the third batch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            raise self.error


class Busy(pl.Callback):
    """Waits until the threads of the callbacks run."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_train_batch_end(self, *args: Any) -> None:
        self.names |= {thread.name for thread in threading.enumerate()}


def data() -> Any:
    return stormproof.resumable(make_loader())


def all_callbacks(folder: Path) -> list[pl.Callback]:
    arguments = {**ARGUMENTS, "CheckpointRecovery": {"dirpath": folder, "every_n_train_steps": 1}}
    return [getattr(stormproof, name)(**arguments.get(name, {})) for name in EXPORTED]


@pytest.fixture(autouse=True)
def _no_new_thread() -> Iterator[None]:
    destroy_gloo_before_exit()  # whose thread stays on Python 3.12.0 and 3.12.1
    before = set(threading.enumerate())
    yield
    monitor_threads = {
        thread for thread in threading.enumerate() if isinstance(thread, TMonitor)
    }  # of lr_find's progress bar
    assert set(threading.enumerate()) - monitor_threads == before - monitor_threads


def test_after_a_fit_and_a_validation(tmp_path: Path):
    before, busy = set(threading.enumerate()), Busy()
    pl_trainer = make_trainer(callbacks=[*all_callbacks(tmp_path), busy])
    pl_trainer.fit(make_module(kind=ValidatedRegressionModule), data(), data())
    assert {"hang-watch", "lease-heartbeat"} <= busy.names
    assert set(threading.enumerate()) == before
    pl_trainer.validate(make_module(kind=ValidatedRegressionModule), data(), verbose=False)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["an error", "Ctrl-C"])
def test_after_an_interrupted_fit(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("signal.signal", lambda *args: None)  # Lightning ignores SIGINT from then on
    pl_trainer = make_trainer(callbacks=[*all_callbacks(tmp_path), Fails(error)])
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else ValueError):
        pl_trainer.fit(make_module(), data())


def test_after_an_error_before_the_first_batch(tmp_path: Path):
    fails = make_module()

    def train_dataloader() -> None:
        raise ValueError("mine")

    fails.train_dataloader = train_dataloader
    with pytest.raises(ValueError, match="mine"):
        make_trainer(callbacks=all_callbacks(tmp_path)).fit(fails)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # of the checkpoint of the finder
def test_after_a_learning_rate_finder_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # for the finder's checkpoint
    fails = make_module()
    fails.lr = 0.1

    def training_step(*args: Any) -> None:
        raise ValueError("mine")

    fails.training_step = training_step
    with pytest.raises(ValueError, match="mine"):
        Tuner(make_trainer(callbacks=all_callbacks(tmp_path))).lr_find(fails, data())
    make_trainer(callbacks=[CheckpointRecovery(tmp_path)]).fit(make_module(), data())  # the folder is free


@pytest.mark.parametrize(
    ("owner", "method"),
    [(Store, "apply_retention"), (Lease, "release"), (ProcessActivity, "seconds")],
    ids=["write", "release", "watch"],
)
def test_a_thread_that_waits_for_storage_keeps_no_trainer(
    owner: type, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    patience = {
        Store: (async_writer, "HANG_TIMEOUT_SECONDS"),
        Lease: (async_writer, "RELEASE_TIMEOUT_SECONDS"),
        ProcessActivity: (hang_watch, "JOIN_SECONDS"),
    }
    monkeypatch.setattr(*patience[owner], 0.05)
    before, hangs, gate = set(threading.enumerate()), threading.Event(), threading.Event()
    original = getattr(owner, method)

    def hang(*args: Any, **kwargs: Any) -> Any:
        hangs.set()
        gate.wait(60)
        return original(*args, **kwargs)

    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                monkeypatch.setattr(owner, method, hang)
            if batch_idx == 3:
                assert owner is Lease or hangs.wait(60)
                raise ValueError("mine")

    callbacks = [CheckpointRecovery(tmp_path, every_n_train_steps=2), HangWatch(timeout_seconds=1.0), Stops()]
    with pytest.raises(ValueError, match="mine"):
        make_trainer(callbacks=callbacks).fit(make_module(), data())
    assert hangs.is_set()
    left = set(threading.enumerate()) - before
    assert left
    gate.set()
    for thread in left:
        thread.join(60)
    assert not Lease.is_active(tmp_path)

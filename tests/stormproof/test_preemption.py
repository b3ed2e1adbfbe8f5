"""Who answers signals, and until when; how ranks leave together is for the drills in tests/faults."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from stormproof import CheckpointRecovery, Preemption, resumable
from stormproof.errors import NotResumableError, PreemptedExit
from stormproof.signals import listener
from stormproof.signals.listener import TERMINATION_SIGNALS, SignalListener
from stormproof.signals.worker_signal_mask import IgnoreSignals, mask_worker_signals
from stormproof.testing import FaultInjector
from tests.support.recovery_fits import BatchEndCallback, checkpoint_steps
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


def user_handler(number: int, frame: Any) -> None:
    raise AssertionError("the user's own handler was called")


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {signal_number: signal.signal(signal_number, user_handler) for signal_number in TERMINATION_SIGNALS}
    yield
    for signal_number, handler in before.items():
        assert signal.getsignal(signal_number) is user_handler, "a handler was not given back"
        signal.signal(signal_number, handler)


def fit(folder: Path, *callbacks: pl.Callback, lightning: Any = pl, **options: Any) -> Any:
    recovery = CheckpointRecovery(folder, every_n_train_steps=100)
    pl_trainer = make_trainer(lightning, callbacks=[Preemption(), *callbacks, recovery], **options)
    pl_trainer.fit(make_module(lightning), resumable(make_loader()), ckpt_path=recovery.latest_checkpoint())
    return pl_trainer


@BOTH_PACKAGES
@pytest.mark.parametrize("number", TERMINATION_SIGNALS)
def test_fit_saves_the_step_and_raises_system_exit_75(number: signal.Signals, lightning: Any, tmp_path: Path):
    tell = type("Tell", (lightning.Callback,), {"on_train_batch_end": _send_signal_at(3, number)})()
    with pytest.raises(PreemptedExit) as left:
        fit(tmp_path, tell, lightning=lightning)
    assert (left.value.code, left.value.signal) == (75, number.name)
    assert checkpoint_steps(tmp_path) == [0, 3]
    assert fit(tmp_path, lightning=lightning).global_step == 6


def _send_signal_at(step: int, number: int) -> Any:
    def send_signal(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            signal.raise_signal(number)

    return send_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_lightnings_own_handlers_are_never_in_charge(number: signal.Signals, tmp_path: Path):
    handlers: set[Any] = set()

    class Look(pl.Callback):
        def _look(self, *args: Any, **kwargs: Any) -> None:
            handlers.add(signal.getsignal(number))

    for hook in ("setup", "on_fit_start", "on_validation_batch_end", "on_train_batch_end", "on_train_end"):
        setattr(Look, hook, Look._look)
    recovery = CheckpointRecovery(tmp_path)
    pl_trainer = make_trainer(callbacks=[Preemption(), Look(), recovery], num_sanity_val_steps=1)
    pl_trainer.fit(make_module(kind=ValidatedRegressionModule), resumable(make_loader()), make_loader(2))
    assert len(handlers) == 1
    assert type(next(iter(handlers)).__self__) is SignalListener


def test_a_signal_that_comes_with_the_end_is_not_lost(tmp_path: Path):
    class AtTheEnd(pl.Callback):
        def on_fit_end(self, *args: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(PreemptedExit):
        fit(tmp_path, AtTheEnd())
    assert checkpoint_steps(tmp_path)[-1] == 6
    assert fit(tmp_path).global_step == 6


def test_handlers_are_given_back_after_an_error(tmp_path: Path):
    def fail(step: int) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fit(tmp_path, BatchEndCallback(fail))  # the fixture looks


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_are_left_between_two_batches_and_need_no_recovery(stage: str):
    class Everything(ValidatedRegressionModule):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch

    finished_steps: list[int] = []

    class Tell(pl.Callback):
        def _batch(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, *args: Any) -> None:
            finished_steps.append(batch_idx)
            if batch_idx == 1:
                signal.raise_signal(signal.SIGTERM)

        on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _batch

    pl_trainer = make_trainer(callbacks=[Tell(), Preemption()])
    with pytest.raises(PreemptedExit):
        getattr(pl_trainer, stage)(make_module(kind=Everything), make_loader(4))
    assert finished_steps == [0, 1]


def test_without_a_recovery_fit_is_refused():
    with pytest.raises(NotResumableError, match="add CheckpointRecovery to the callbacks or remove"):
        make_trainer(callbacks=[Preemption()]).fit(make_module(), make_loader())


def test_in_a_thread_it_says_that_it_hears_nothing(tmp_path: Path):
    messages: list[Any] = []

    def run() -> None:
        with pytest.warns(UserWarning, match="Python allows signal handlers in the main thread only"):
            messages.append(fit(tmp_path).global_step)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert messages == [6]


@pytest.mark.parametrize("grace", [0.0, -1.0, float("nan")])
def test_a_grace_that_is_none_is_named(grace: float):
    with pytest.raises(ValueError, match="`grace_seconds` must be above 0"):
        Preemption(grace)


def test_a_save_that_will_not_fit_is_warned_of_and_tried(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    tell = BatchEndCallback(lambda step: signal.raise_signal(signal.SIGTERM) if step == 3 else None)
    pl_trainer = make_trainer(callbacks=[Preemption(grace_seconds=1e-6), tell, recovery])
    with (
        pytest.warns(UserWarning, match="Writing a checkpoint takes 0 s, but only -?0 s remain between SIGTERM"),
        pytest.raises(PreemptedExit),
    ):
        pl_trainer.fit(make_module(), resumable(make_loader()))
    assert checkpoint_steps(tmp_path) == [2, 3]


def test_slurms_end_of_the_job_counts_for_what_it_sends_ahead():
    preemption = Preemption()
    environ = {"SLURM_JOB_END_TIME": str(int(time.time()) + 200)}
    assert preemption._compute_remaining_seconds(signal.SIGUSR1, environ) == pytest.approx(200, abs=2)
    assert preemption._compute_remaining_seconds(signal.SIGTERM, environ) == pytest.approx(30, abs=1)
    assert preemption._compute_remaining_seconds(signal.SIGUSR1, {}) == pytest.approx(30, abs=1)
    assert Preemption(90)._compute_remaining_seconds(signal.SIGUSR1, environ) == 90


# Listener


def test_the_first_signal_is_noted_with_its_time():
    signal_listener = SignalListener()
    assert signal_listener.listen()
    before = time.monotonic()
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGTERM)
    assert signal_listener.received_signal is signal.SIGUSR2
    assert before <= signal_listener.received_at <= time.monotonic()
    signal_listener.stop()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("impatient", [True, False])
def test_a_later_ctrl_c_interrupts_who_is_impatient(
    first: signal.Signals, impatient: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(listener, "SECOND_SIGINT_SECONDS", 0.0)
    signal_listener = SignalListener(impatient)
    signal_listener.listen()
    signal.raise_signal(first)
    with pytest.raises(KeyboardInterrupt) if impatient else nullcontext():
        signal.raise_signal(signal.SIGINT)
    signal_listener.stop()


def test_a_ctrl_c_that_is_passed_on_twice_is_one():
    signal_listener = SignalListener()
    signal_listener.listen()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert signal_listener.received_signal is signal.SIGINT
    signal_listener.stop()


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal_listener = SignalListener()
    signal_listener.listen()
    signal.raise_signal(signal.SIGINT)
    assert signal_listener.received_signal is None
    signal_listener.stop()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, user_handler)


def test_weights_that_are_not_finite_are_said_to_be_of_the_step_before(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2)
    saved: list[Any] = []
    recovery.call_at_steps(
        lambda *arguments: saved.append(recovery.commit(*arguments)) if arguments[0].global_step == 3 else None
    )
    pl_trainer = make_trainer(callbacks=[FaultInjector().nan(step=2), recovery])
    with pytest.warns(UserWarning, match="is not finite"):
        pl_trainer.fit(make_module(), resumable(make_loader()))
    assert saved == [2]


def test_a_handler_that_somebody_set_since_stays():
    signal_listener = SignalListener()
    signal_listener.listen()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal_listener.stop()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    signal.signal(signal.SIGUSR1, user_handler)


# Workers


def _pids(worker: int) -> None:
    torch.manual_seed(worker)


class Pid:
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("kind", ["plain", "resumable"])
@pytest.mark.parametrize("number", TERMINATION_SIGNALS)
def test_workers_outlive_signals_of_others(kind: str, number: signal.Signals):
    inner = DataLoader(Pid(), batch_size=1, num_workers=1, prefetch_factor=2, worker_init_fn=_pids)  # type: ignore[arg-type]
    workers = inner if kind == "plain" else resumable(inner)
    undo = mask_worker_signals(workers)
    batches = iter(workers)
    pid = int(next(batches))
    os.waitpid(os.posix_spawnp("kill", ["kill", f"-{number.name[3:]}", str(pid)], os.environ), 0)
    assert [int(batch) for batch in batches] == [pid] * 63
    undo()
    assert inner.worker_init_fn is _pids


def test_a_worker_hears_its_own_process():
    inner = DataLoader(Pid(), batch_size=1, num_workers=1, prefetch_factor=2, worker_init_fn=IgnoreSignals(None))  # type: ignore[arg-type]
    batches = iter(inner)
    worker = psutil.Process(int(next(batches)))
    worker.terminate()
    assert worker.wait(timeout=30) is not None or not worker.is_running()


@pytest.mark.slow
def test_a_signal_finds_no_worker_that_hears_it_yet():
    """Each pass forks one anew, and the group is told as soon as it is there."""
    inner = DataLoader(Pid(), batch_size=16, num_workers=1)  # type: ignore[arg-type]
    mask_worker_signals(inner)
    for _ in range(20):
        batches = iter(inner)
        worker = batches._workers[0].pid  # type: ignore[attr-defined]
        os.waitpid(os.posix_spawnp("kill", ["kill", "-TERM", str(worker)], os.environ), 0)
        assert len(list(batches)) == 4


def test_what_has_no_workers_is_left_alone():
    mask_worker_signals([1, 2, 3])()
    data = DataLoader(TensorDataset(torch.ones(2)))
    mask_worker_signals(data)()
    assert data.worker_init_fn is None

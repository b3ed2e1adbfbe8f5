"""A copy of a callback or of its trainer does not act in the training of the original, and can be used for another."""

from __future__ import annotations

import copy
import pickle
import signal
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, HangWatch, Preemption, TrainingHealth, resumable
from stormproof.health.observers.tracing.traced_step import trace_next_step
from stormproof.lightning.method_replacement import call_after, call_before, replace
from tests.stormproof.test_callback_contract import EXPORTED, add_companions, make_callback
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS
HOOKS = ["on_fit_start", "on_train_start", "on_train_batch_start", "on_before_optimizer_step", "on_validation_end"]


class CopyRecorder:
    """Keeps ``take(trainer)`` of the first call of each hook; mixed into either Lightning's callback."""

    def __init__(self, take: Callable[[Any], Any]) -> None:
        self.taken: dict[str, Any] = {}
        for name in HOOKS:
            setattr(self, name, lambda trainer, *_, name=name: self.taken.setdefault(name, take(trainer)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(lambda _: None)


def copies_with(take: Callable[[Any], Any], lightning: Any = pl) -> Any:
    return type("CopyRecorder", (CopyRecorder, lightning.Callback), {})(take)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(*callbacks: pl.Callback) -> list[torch.Tensor]:
    net = make_module(kind=ValidatedRegressionModule)
    make_trainer(callbacks=list(callbacks)).fit(net, resumable(make_loader()), make_loader())
    return list(net.parameters())


def active_state(known_threads: Collection[threading.Thread]) -> list[Any]:
    """Returns the threads that are not in ``known_threads``, which may end meanwhile, and the signal handlers."""
    return [
        set(threading.enumerate()) - set(known_threads),
        *(signal.getsignal(signal_number) for signal_number in (signal.SIGTERM, signal.SIGINT)),
    ]


@pytest.mark.parametrize("name", EXPORTED)
def test_a_copy_made_during_training_has_the_state_and_can_train(name: str, tmp_path: Path):
    threads = threading.enumerate()
    before, callback = active_state(threads), make_callback(name)

    def take(_: Any) -> Any:
        return copy.deepcopy(callback), pickle.loads(pickle.dumps(callback)), callback.state_dict()

    copies = copies_with(take)
    weights = fit(*add_companions(callback, name), copies)
    for hook, (*both, state) in copies.taken.items():
        for fit_trainer in both:
            assert {**fit_trainer.state_dict(), "time": 0} == {**state, "time": 0}, hook
    for number, used in enumerate((copies.taken["on_before_optimizer_step"][0], copies.taken["on_validation_end"][1])):
        if Path("checkpoints").exists():
            Path("checkpoints").rename(f"those before {number}")
        assert all(map(torch.equal, weights, fit(*add_companions(used, name))))
    assert active_state(threads) == before


@BOTH_PACKAGES
def test_a_copy_of_the_trainer_trains_by_itself(lightning: Any):
    threads = threading.enumerate()
    before = active_state(threads)
    callbacks = [
        CheckpointRecovery("checkpoints", every_n_train_steps=2, wrap_loaders=True),
        Preemption(),
        HangWatch(),
        TrainingHealth(),
    ]
    copies = copies_with(copy.deepcopy, lightning)
    make_trainer(lightning, callbacks=[*callbacks, copies]).fit(
        make_module(lightning, ValidatedRegressionModule), resumable(make_loader()), make_loader()
    )
    for copied in copies.taken.values():
        for owner in (
            copied.strategy, copied.fit_loop.epoch_loop, copied.fit_loop._data_source, copied._signal_connector,
            copied.precision_plugin,
        ):  # fmt: skip
            our_attributes = {
                name for name, value in vars(owner).items() if type(value).__module__.startswith("stormproof")
            }
            assert our_attributes <= {"instance"}  # the loader
    Path("checkpoints").rename("those before")
    copied = copies.taken["on_train_batch_start"]
    copied.fit(make_module(lightning, ValidatedRegressionModule), resumable(make_loader()), make_loader())
    assert copied.global_step == 6
    assert CheckpointRecovery("checkpoints").latest_checkpoint() is not None
    assert active_state(threads) == before


class Counter:
    count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count


@pytest.mark.parametrize("own", [False, True])
def test_a_replaced_method_is_restored_and_copies_have_the_original(own: bool):
    counter = Counter()
    if own:
        counter.add = lambda number: Counter.add(counter, 10 * number)  # type: ignore[method-assign]
    before, calls = vars(counter).get("add"), []
    stops = [
        call_before(counter, "add", lambda number: calls.append(("before", number))),
        call_after(counter, "add", lambda result, number: calls.append((result, number))),
    ]
    copied = copy.deepcopy(counter)
    counter.add(1)
    assert calls == [("before", 1), (counter.count, 1)]
    stop = replace(counter, "add", lambda number: -number)
    assert counter.add(5) == -5
    stop()
    for restore in stops:
        restore()
    assert vars(counter).get("add") is before
    if not own:
        assert copied.add(3) == copied.count == 3
    assert len(calls) == 2


def test_a_copy_of_a_module_whose_step_is_watched_has_a_step_of_its_own():
    net = make_module()
    stop = trace_next_step(net, "training_step", torch.no_grad(), lambda _: None)
    copied = copy.deepcopy(net)
    stop()
    assert copied.training_step.__self__ is copied
    assert "training_step" not in vars(net)

"""A copy of a callback or of its trainer does not act in the training of the original, and can be used for another."""

from __future__ import annotations

import copy
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, HangWatch, Preemption, TrainingHealth, resumable
from stormproof.health.observers.traced_step import watch_step
from stormproof.lightning.method_replacement import call_after, call_before, replace
from tests.stormproof.test_callback_contract import EXPORTED, make, with_those_beside
from tests.support.small_fits import BOTH, LIGHTNINGS_OWN, Validated, loader, module, trainer

pytestmark = LIGHTNINGS_OWN
HOOKS = ["on_fit_start", "on_train_start", "on_train_batch_start", "on_before_optimizer_step", "on_validation_end"]


class CopyInHooks:
    """Keeps ``take(trainer)`` of the first call of each hook; mixed into either Lightning's callback."""

    def __init__(self, take: Callable[[Any], Any]) -> None:
        self.taken: dict[str, Any] = {}
        for name in HOOKS:
            setattr(self, name, lambda trainer, *_, name=name: self.taken.setdefault(name, take(trainer)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(lambda _: None)


def copies_with(take: Callable[[Any], Any], lightning: Any = pl) -> Any:
    return type("CopyInHooks", (CopyInHooks, lightning.Callback), {})(take)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(*callbacks: pl.Callback) -> list[torch.Tensor]:
    net = module(kind=Validated)
    trainer(callbacks=list(callbacks)).fit(net, resumable(loader()), loader())
    return list(net.parameters())


def what_is_active() -> list[Any]:
    return [set(threading.enumerate()), *(signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT))]


@pytest.mark.parametrize("name", EXPORTED)
def test_a_copy_made_during_training_has_the_state_and_can_train(name: str, tmp_path: Path):
    before, callback = what_is_active(), make(name)

    def take(_: Any) -> Any:
        return copy.deepcopy(callback), pickle.loads(pickle.dumps(callback)), callback.state_dict()

    copies = copies_with(take)
    weights = fit(*with_those_beside(callback, name), copies)
    for hook, (*both, state) in copies.taken.items():
        for each in both:
            assert {**each.state_dict(), "time": 0} == {**state, "time": 0}, hook
    for number, used in enumerate((copies.taken["on_before_optimizer_step"][0], copies.taken["on_validation_end"][1])):
        if Path("checkpoints").exists():
            Path("checkpoints").rename(f"those before {number}")
        assert all(map(torch.equal, weights, fit(*with_those_beside(used, name))))
    assert what_is_active() == before


@BOTH
def test_a_copy_of_the_trainer_trains_by_itself(lightning: Any):
    before = what_is_active()
    callbacks = [
        CheckpointRecovery("checkpoints", every_n_train_steps=2, wrap_loaders=True),
        Preemption(),
        HangWatch(),
        TrainingHealth(),
    ]
    copies = copies_with(copy.deepcopy, lightning)
    trainer(lightning, callbacks=[*callbacks, copies]).fit(module(lightning, Validated), resumable(loader()), loader())
    for copied in copies.taken.values():
        for owner in (
            copied.strategy, copied.fit_loop.epoch_loop, copied.fit_loop._data_source, copied._signal_connector,
            copied.precision_plugin,
        ):  # fmt: skip
            ours = {name for name, value in vars(owner).items() if type(value).__module__.startswith("stormproof")}
            assert ours <= {"instance"}  # the loader
    Path("checkpoints").rename("those before")
    copied = copies.taken["on_train_batch_start"]
    copied.fit(module(lightning, Validated), resumable(loader()), loader())
    assert copied.global_step == 6
    assert CheckpointRecovery("checkpoints").latest_checkpoint() is not None
    assert what_is_active() == before


class Counter:
    count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count


@pytest.mark.parametrize("own", [False, True])
def test_a_replaced_method_is_restored_and_copies_have_the_original(own: bool):
    one = Counter()
    if own:
        one.add = lambda number: Counter.add(one, 10 * number)  # type: ignore[method-assign]
    before, seen = vars(one).get("add"), []
    stops = [
        call_before(one, "add", lambda number: seen.append(("before", number))),
        call_after(one, "add", lambda result, number: seen.append((result, number))),
    ]
    copied = copy.deepcopy(one)
    one.add(1)
    assert seen == [("before", 1), (one.count, 1)]
    stop = replace(one, "add", lambda number: -number)
    assert one.add(5) == -5
    stop()
    for each in stops:
        each()
    assert vars(one).get("add") is before
    if not own:
        assert copied.add(3) == copied.count == 3
    assert len(seen) == 2


def test_a_copy_of_a_module_whose_step_is_watched_has_a_step_of_its_own():
    net = module()
    stop = watch_step(net, "training_step", torch.no_grad(), lambda _: None)
    copied = copy.deepcopy(net)
    stop()
    assert copied.training_step.__self__ is copied
    assert "training_step" not in vars(net)

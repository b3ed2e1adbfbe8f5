"""The batch hooks of neighboring callbacks with one call of Lightning."""

import copy
import pickle
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof.lightning.hook_dispatch import BATCH_HOOKS, dispatch_batch_hooks
from stormproof.lightning.inactive_copies import InactiveCopies
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class Ours(InactiveCopies, pl.Callback):
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def on_train_batch_start(self, *_: Any) -> None:
        self.calls.append(f"{self.name} starts")

    def on_train_batch_end(self, *_: Any) -> None:
        self.calls.append(f"{self.name} ends")


class Starts(Ours):
    def on_train_batch_end(self, *_: Any) -> None:
        super().on_train_batch_end()
        super().on_before_zero_grad(None, None, None)  # type: ignore[arg-type]


class Theirs(pl.Callback):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def on_train_batch_start(self, *_: Any) -> None:
        self.calls.append("theirs starts")


def _is_ours(callback: pl.Callback) -> bool:
    return isinstance(callback, Ours)


def _fit(callbacks: list[pl.Callback], *, dispatched: bool) -> None:
    class Dispatches(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if dispatched:
                self.undo = dispatch_batch_hooks(trainer.callbacks, _is_ours)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if dispatched:
                self.undo()

    make_trainer(callbacks=[Dispatches(), *callbacks]).fit(make_module(), make_loader(2))


def test_the_order_of_all_calls_stays_the_same():
    orders = []
    for dispatched in (False, True):
        calls: list[str] = []
        _fit([Ours("a", calls), Starts("b", calls), Theirs(calls), Ours("c", calls)], dispatched=dispatched)
        orders.append(calls)
    assert orders[0] == orders[1]
    assert orders[0][:6] == ["a starts", "b starts", "theirs starts", "c starts", "a ends", "b ends"]


def test_lightning_calls_each_overridden_hook_once_per_group():
    calls: list[str] = []
    callbacks = [Ours("a", calls), Ours("b", calls), Theirs(calls)]
    undo = dispatch_batch_hooks(callbacks, _is_ours)
    callable_hooks = {
        (index, name) for index, callback in enumerate(callbacks[:2]) for name in BATCH_HOOKS if getattr(callback, name)
    }
    assert callable_hooks == {(0, "on_train_batch_start"), (0, "on_train_batch_end")}
    assert all(callable(getattr(callbacks[2], name)) for name in BATCH_HOOKS)
    undo()
    assert all(not {*BATCH_HOOKS} & {*vars(callback)} for callback in callbacks)


def test_a_hook_that_a_user_set_on_the_instance_is_called_and_restored():
    calls: list[str] = []
    callback, other = Ours("a", calls), Ours("b", calls)
    hook = callback.on_before_backward = lambda *_: calls.append("set")
    undo = dispatch_batch_hooks([other, callback], _is_ours)
    other.on_before_backward(None, None, None)  # type: ignore[arg-type]
    undo()
    assert calls == ["set"]
    assert callback.on_before_backward is hook
    assert "on_before_backward" not in vars(other)


def test_hooks_that_were_never_restored_do_not_affect_the_next_fit():
    calls: list[str] = []
    callbacks = [Ours("a", calls), Ours("b", calls)]
    dispatch_batch_hooks(callbacks, _is_ours)
    undo = dispatch_batch_hooks(callbacks, _is_ours)
    callbacks[0].on_train_batch_start()
    undo()
    assert calls == ["a starts", "b starts"]
    assert all(not {*BATCH_HOOKS} & {*vars(callback)} for callback in callbacks)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_made_in_training_has_its_own_hooks(make_copy: Any):
    first, second = Ours("a", []), Ours("b", [])
    dispatch_batch_hooks([first, second], _is_ours)
    for callback in (make_copy(first), make_copy(second)):
        assert not {*BATCH_HOOKS} & {*vars(callback)}
        callback.on_train_batch_start()
        assert callback.calls == [f"{callback.name} starts"]

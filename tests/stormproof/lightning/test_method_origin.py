import functools
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof import GradientNormMonitor
from stormproof.lightning.method_replacement import call_before, is_from_user, replace
from tests.support.small_fits import LIGHTNING_PYTORCH

HOOK = "on_before_optimizer_step"


class Overrides(GradientNormMonitor):
    def on_before_optimizer_step(self, *args: Any) -> None:
        super().on_before_optimizer_step(*args)


class OverridesWithADecorator(pl.Callback):
    @functools.wraps(pl.Callback.on_before_optimizer_step)
    def on_before_optimizer_step(self, *args: Any) -> None: ...


class OverridesAnother(GradientNormMonitor):
    def on_train_start(self, *args: Any) -> None: ...


@pytest.mark.parametrize("owner_class", [Overrides, OverridesWithADecorator])
def test_an_overridden_method_is_from_the_user(owner_class: type[pl.Callback]):
    assert is_from_user(owner_class(), HOOK)


@pytest.mark.parametrize(
    "owner_class",
    [pl.Callback, pl.callbacks.DeviceStatsMonitor, LIGHTNING_PYTORCH.Callback, GradientNormMonitor, OverridesAnother],
)
def test_an_inherited_method_is_not(owner_class: type[pl.Callback]):
    assert not is_from_user(owner_class(), HOOK)


def test_a_method_on_the_object_is_from_the_user_unless_stormproof_has_set_it():
    callback = pl.Callback()
    stop = call_before(callback, HOOK, lambda *_: None)
    assert not is_from_user(callback, HOOK)
    stop()
    stop = replace(callback, HOOK, lambda *_: None)
    assert not is_from_user(callback, HOOK)
    stop()
    setattr(callback, HOOK, lambda *_: None)
    assert is_from_user(callback, HOOK)


def test_an_overridden_method_stays_one_of_the_user_while_stormproof_replaces_it():
    callback = Overrides()
    stop = call_before(callback, HOOK, lambda *_: None)
    assert is_from_user(callback, HOOK)
    stop()


def test_a_method_that_does_not_exist_is_not_trusted():
    assert is_from_user(pl.Callback(), "on_something_new")

"""What the detector leaves as it was: weights, generators, hooks, modes; and its own state is plain."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from stormproof import DeadNeuronDetector
from tests.stormproof.units.unit_fits import (
    Maxout,
    TrainingModule,
    ValidatedModule,
    count_forward_hooks,
    fit,
    make_detector,
    make_inputs,
    make_linear,
    make_loader,
    mlp,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class Draws(ValidatedModule):
    """Notes what the generator gives after each step."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.drawn = [*getattr(self, "drawn", []), torch.get_rng_state().sum().item()]
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("options", [{}, {"every_n_steps": 1}, {"every_n_steps": 1, "reinit_every_n_steps": 1000}])
def test_the_training_is_the_same_to_the_last_bit(options: dict[str, Any]):
    ends = []
    for callbacks in ([make_detector(**options)], []):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout2d(),
            nn.Flatten(2),
            nn.TransformerEncoderLayer(16, 2, 8, batch_first=True),
            nn.Flatten(),
            nn.Linear(64, 1),
        )
        module = Draws(net, torch.optim.Adam)
        make_trainer(callbacks=callbacks, max_epochs=2, num_sanity_val_steps=2).fit(
            module, make_loader(make_inputs(14, 1, 6, 6)), make_loader(make_inputs(7, 1, 6, 6))
        )
        ends.append((module.state_dict(), module.drawn))
    (state, drawn), (expected_state, drawn_without) = ends
    assert drawn == drawn_without
    assert all(torch.equal(state[name], expected_state[name]) for name in state)


class Raises(ValidatedModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == self.at:
            self.net(batch[0])
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_error_leaves_no_hook_and_no_mode_behind(at: int, error: BaseException):
    module: Any = Raises(mlp(6, 4, 1))
    module.at, module.error = at, error
    dead = make_detector(every_n_steps=1)
    with pytest.raises((ValueError, KeyboardInterrupt, SystemExit)):
        make_trainer(callbacks=[dead]).fit(module, make_loader(make_inputs(8, 6)), make_loader(make_inputs(7, 6)))
    assert not count_forward_hooks(module)
    assert _get_current_function_mode_stack() == []
    second_fit = fit(mlp(6, 4, 1), make_inputs(8, 6), make_inputs(7, 6), dead=dead)
    assert (
        len(second_fit["net.1"]),
        second_fit.dead.dead_counts["net.1"][0][0],
        len(second_fit.dead.dead_counts["net.1"]),
    ) == (
        4,
        2,
        1,
    )


@pytest.mark.parametrize("validated", [True, False])
def test_a_fit_leaves_no_hook_and_no_mode_behind(validated: bool):
    result = fit(mlp(6, 4, 1), make_inputs(8, 6), make_inputs(7, 6) if validated else None)
    assert not count_forward_hooks(result.module)
    assert _get_current_function_mode_stack() == []


def test_a_batch_that_is_skipped_leaves_no_mode_behind():
    modes = []

    class Skips(TrainingModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 0 else None

    class Note(pl.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            modes.append(list(_get_current_function_mode_stack()))

    pl_trainer = make_trainer(callbacks=[make_detector(), Note()])
    module = Skips(nn.Sequential(make_linear(4), make_linear(1, 4)))
    pl_trainer.fit(module, make_loader(make_inputs(8, 6)))
    assert modes == [[]]
    assert pl_trainer.global_step == 0


def test_no_batch_of_a_validation_waits_for_the_device():

    waits: list[list[str]] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_local_scalar_dense" in str(func):
                waits[-1].append(str(func))
            return func(*args, **(kwargs or {}))

    class First(pl.Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            waits.append([])
            self.mode = Counting()
            self.mode.__enter__()

    class Last(pl.Callback):
        def on_validation_batch_end(self, *_: Any) -> None:
            first.mode.__exit__(None, None, None)

    first = First()
    module = ValidatedModule(nn.Sequential(make_linear(4), nn.ReLU(), make_linear(4, 4), Maxout(2), make_linear(1, 2)))
    make_trainer(callbacks=[first, make_detector(), Last()]).fit(
        module, make_loader(make_inputs(8, 6)), make_loader(make_inputs(11, 6))
    )
    assert waits[1:] == [[], []]  # in the first, what is where is worked out, on the CPU


# What is kept


def test_its_state_is_plain_in_the_middle_of_an_epoch():
    states: list[Any] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            states.append(dead.state_dict())

    dead = make_detector(every_n_steps=1, reinit_every_n_steps=2)
    pl_trainer = make_trainer(callbacks=[dead, Note()], max_epochs=2)
    pl_trainer.fit(ValidatedModule(mlp(6, 4, 3, 1)), make_loader(make_inputs(8, 6)), make_loader(make_inputs(7, 6)))
    for state in states:
        assert json.loads(json.dumps(state)) == state
        restored = make_detector(every_n_steps=1, reinit_every_n_steps=2)
        restored.load_state_dict(json.loads(json.dumps(state)))
        assert restored.state_dict() == state
    assert states[0]["unit_records"]["records"][0]["training_extremes"] is not None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` must be at least 1 or None, got 0"),
        ({"reinit_every_n_steps": 0}, "`reinit_every_n_steps` must be at least 1 or None, got 0"),
        ({"dormant_threshold": -0.1}, "`dormant_threshold` must be at least 0, got -0.1"),
        ({"dormant_threshold": float("nan")}, "`dormant_threshold` must be at least 0, got nan"),
    ],
)
def test_a_number_out_of_its_range_is_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        DeadNeuronDetector(**options)

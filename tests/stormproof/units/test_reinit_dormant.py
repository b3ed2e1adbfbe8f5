"""Dormant units are given another start, as in Sokar et al. 2023, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.stormproof.units.reinit_fits import STEP, UNIT, NamedNet, Snapshot, reinitialize_unit
from tests.stormproof.units.unit_fits import (
    OnStep,
    TrainingModule,
    fit,
    make_detector,
    make_inputs,
    make_loader,
    mlp,
    set_unit_weights,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS

IMAGES, TOKENS, ROWS = (2, 5, 5), (5, 6), (6,)
EVERY = slice(None)


def network_function(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.b(functional.relu(net.a(x)))


Changes = dict[str, Any]  # of each tensor that is changed, the entries
CASES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], str, Changes, Changes]] = {
    "dense": (
        ROWS,
        lambda: NamedNet(lambda net, x: net.b(net.act(net.a(x))), a=nn.Linear(6, 4), act=nn.ReLU(), b=nn.Linear(4, 2)),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "a function": (
        ROWS,
        lambda: NamedNet(lambda net, x: net.b(functional.relu(net.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 2)),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "dropout between": (
        ROWS,
        lambda: NamedNet(
            lambda net, x: net.b(net.drop(functional.relu(net.a(x)))),
            a=nn.Linear(6, 4),
            drop=nn.Dropout(0.1),
            b=nn.Linear(4, 2),
        ),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "computed again in the backward pass": (
        ROWS,
        lambda: NamedNet(
            lambda net, x: checkpoint(network_function, net, x, use_reentrant=False),
            a=nn.Linear(6, 4),
            b=nn.Linear(4, 2),
        ),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "tokens": (
        TOKENS,
        lambda: NamedNet(lambda net, x: net.b(functional.relu(net.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 2)),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "tokens, flattened": (
        TOKENS,
        lambda: NamedNet(
            lambda net, x: net.b(functional.relu(net.a(x)).flatten(1)), a=nn.Linear(6, 4), b=nn.Linear(20, 2)
        ),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(UNIT, None, 4))},
    ),
    "two consumers of a module": (
        ROWS,
        lambda: NamedNet(
            lambda net, x: net.heads(net.act(net.a(x))),
            a=nn.Linear(6, 4),
            act=nn.ReLU(),
            heads=NamedNet(lambda net, x: net.b(x) + net.c(x), b=nn.Linear(4, 2), c=nn.Linear(4, 2)),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"heads.b.weight": (EVERY, UNIT), "heads.c.weight": (EVERY, UNIT)},
    ),
    "two consumers of a function": (
        ROWS,
        lambda: NamedNet(
            lambda net, x: net.heads(functional.relu(net.a(x))),
            a=nn.Linear(6, 4),
            heads=NamedNet(lambda net, x: net.b(x) + net.c(x), b=nn.Linear(4, 2), c=nn.Linear(4, 2)),
        ),
        "net.heads.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"heads.b.weight": (EVERY, UNIT), "heads.c.weight": (EVERY, UNIT)},
    ),
    "convolutions": (
        IMAGES,
        lambda: NamedNet(
            lambda net, x: net.b(net.act(net.a(x))).flatten(1),
            a=nn.Conv2d(2, 3, 3),
            act=nn.ReLU(),
            b=nn.Conv2d(3, 2, 3),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "transposed convolutions": (
        IMAGES,
        lambda: NamedNet(
            lambda net, x: net.b(net.act(net.a(x))).flatten(1),
            a=nn.ConvTranspose2d(2, 3, 3),
            act=nn.ReLU(),
            b=nn.ConvTranspose2d(3, 2, 3),
        ),
        "net.act",
        {"a.weight": (EVERY, UNIT), "a.bias": UNIT},
        {"b.weight": UNIT},
    ),
    "a convolution, flattened": (
        IMAGES,
        lambda: NamedNet(
            lambda net, x: net.b(net.act(net.a(x)).flatten(1)), a=nn.Conv2d(2, 3, 3), act=nn.ReLU(), b=nn.Linear(27, 2)
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(9, 18))},
    ),
    "a functional one, pooled and flattened": (
        IMAGES,
        lambda: NamedNet(
            lambda net, x: net.b(functional.max_pool2d(functional.relu(net.a(x)), 2).flatten(1)),
            a=nn.Conv2d(2, 3, 2),
            b=nn.Linear(12, 2),
        ),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(4, 8))},
    ),
    "a convolution, flattened with its channels last": (
        IMAGES,
        lambda: NamedNet(
            lambda net, x: net.b(net.act(net.a(x)).permute(0, 2, 3, 1).flatten(1)),
            a=nn.Conv2d(2, 3, 3),
            act=nn.ReLU(),
            b=nn.Linear(27, 2),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(UNIT, None, 3))},
    ),
    "channels that were averaged": (
        IMAGES,
        lambda: NamedNet(
            lambda net, x: net.b(net.act(net.a(x)).mean((2, 3))), a=nn.Conv2d(2, 3, 3), act=nn.ReLU(), b=nn.Linear(3, 2)
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "a consumer without a bias": (
        ROWS,
        lambda: NamedNet(
            lambda net, x: net.b(net.act(net.a(x))),
            a=nn.Linear(6, 4),
            act=nn.ReLU(),
            b=nn.Linear(4, 2, bias=False),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_its_own_weights_are_drawn_anew_and_those_that_take_it_are_zero(case: str):
    shape, make, position, drawn, zero = CASES[case]
    torch.manual_seed(0)
    before, after, dead = reinitialize_unit(make(), make_inputs(8, *shape), "a")
    assert dead.reinitialized == {position: 1}
    for name, value in after.weights.items():
        changed = value != before.weights[name]
        if name in drawn:
            assert changed[drawn[name]].all()
            assert value[drawn[name]].abs().max() < 5  # where there was -100
            changed[drawn[name]] = False
        if name in zero:
            assert not value[zero[name]].any()
            changed[zero[name]] = False
        assert not changed.any()
    assert len(after.moments) == 2 * len(after.weights)  # Adam has two of each weight
    for (name, key), moment in after.moments.items():
        unchanged = torch.ones_like(moment, dtype=torch.bool)
        where = (drawn | zero).get(name)
        if where is not None:
            assert not moment[where].any()
            unchanged[where] = False
        assert torch.equal(moment[unchanged], before.moments[name, key][unchanged])
    assert torch.equal(after.outputs, before.outputs)


def test_the_channel_of_a_batch_norm_between_begins_anew():
    torch.manual_seed(0)
    net = NamedNet(
        lambda net, x: net.b(net.act(net.norm(net.a(x)))),
        a=nn.Linear(6, 4),
        norm=nn.BatchNorm1d(4),
        act=nn.ReLU(),
        b=nn.Linear(4, 2),
    )
    before, after, dead = reinitialize_unit(net, make_inputs(8, 6), "norm")
    assert dead.reinitialized == {"net.act": 1}
    for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        after_value, before_value = after.weights[f"norm.{name}"], before.weights[f"norm.{name}"]
        assert after_value[UNIT] == value != before_value[UNIT]
        assert torch.equal(after_value[[0, 2, 3]], before_value[[0, 2, 3]])
    assert not after.moments["norm.weight", "exp_avg_sq"][UNIT]
    assert torch.equal(after.outputs, before.outputs)


def test_the_momentum_of_sgd_is_forgotten_too():
    after = Snapshot(make_inputs(8, 6))
    kill = OnStep(1, lambda module: set_unit_weights(module.net[0], UNIT, bias=-100.0))
    pl_trainer = make_trainer(
        callbacks=[kill, make_detector(reinit_every_n_steps=STEP, dormant_threshold=0.0), after],
        max_steps=STEP,
        max_epochs=-1,
    )
    net = mlp(6, 4, 2)
    pl_trainer.fit(
        TrainingModule(net, lambda parameters: torch.optim.SGD(parameters, 0.01, 0.9)), make_loader(make_inputs(8, 6))
    )
    momentum = {name: value for (name, _), value in after.moments.items()}
    assert not momentum["0.weight"][UNIT].any()
    assert not momentum["2.weight"][:, UNIT].any()
    assert momentum["0.weight"][0].any()


def test_what_is_drawn_has_the_deviation_of_the_beginning_and_no_two_layers_the_same():
    net = mlp(64, 64, 64, 64, 1)
    spread = float(net[0].weight.detach().std())  # type: ignore[union-attr,operator]

    def kill(module: Any) -> None:
        for layer in (0, 2, 4):
            set_unit_weights(module.net[layer], slice(None), bias=-100, weight=3)

    fit(net, make_inputs(8, 64), None, OnStep(1, kill), dead=make_detector(reinit_every_n_steps=2))
    weights = [net[layer].weight.detach() for layer in (0, 2)]
    for weight in weights:
        assert float(weight.std()) == pytest.approx(spread, rel=0.05)
        assert float(weight.mean()) == pytest.approx(0, abs=4 * spread / 64)
    assert len({round(float(weight[0, 0]) / spread, 4) for weight in weights}) == 2


def test_a_bias_that_began_at_zero_begins_there_again():
    net = mlp(6, 4, 2)
    nn.init.zeros_(net[0].bias)  # type: ignore[arg-type]
    _, after, _ = reinitialize_unit(NamedNet(lambda net, x: net.all(x), all=net), make_inputs(8, 6), "all.0")
    assert after.weights["all.0.bias"][UNIT] == 0

"""In which way units are dead, in every precision, and pieces that never win."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stormproof import MaxoutPieces
from tests.stormproof.units.unit_fits import (
    ABOVE,
    BELOW,
    Maxout,
    NamedLayers,
    ValidatedModule,
    constant_units,
    fit,
    make_detector,
    make_inputs,
    make_linear,
    make_loader,
    mlp,
    set_constant_units,
    set_unit_weights,
    zero_lr_optimizer,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


SATURATED: dict[str, tuple[nn.Module, dict[str, int]]] = {  # of units at -200, 200, constantly 0.5, and alive
    "relu": (nn.ReLU(), {"zero": 1, "constant": 2}),
    "leaky relu": (nn.LeakyReLU(), {"constant": 3}),
    "relu6": (nn.ReLU6(), {"zero": 1, "saturated high": 1, "constant": 1}),
    "sigmoid": (nn.Sigmoid(), {"saturated low": 1, "saturated high": 1, "constant": 1}),
    "tanh": (nn.Tanh(), {"saturated low": 1, "saturated high": 1, "constant": 1}),
    "softsign": (nn.Softsign(), {"constant": 3}),  # it only comes near
    "elu": (nn.ELU(), {"saturated low": 1, "constant": 2}),
    "elu of 0.3": (nn.ELU(0.3), {"saturated low": 1, "constant": 2}),
    "celu": (nn.CELU(0.5), {"saturated low": 1, "constant": 2}),
    "selu": (nn.SELU(), {"saturated low": 1, "constant": 2}),
    "hardtanh": (nn.Hardtanh(), {"saturated low": 1, "saturated high": 1, "constant": 1}),
    "hardtanh to 0.3": (nn.Hardtanh(-0.1, 0.3), {"saturated low": 1, "saturated high": 2}),
    "hardtanh from 0": (nn.Hardtanh(0, 5), {"saturated low": 1, "saturated high": 1, "constant": 1}),
    "hardsigmoid": (nn.Hardsigmoid(), {"saturated low": 1, "saturated high": 1, "constant": 1}),
    "gelu": (nn.GELU(), {"zero": 1, "constant": 2}),
    "softplus": (nn.Softplus(), {"zero": 1, "constant": 2}),
    "softmax": (nn.Softmax(-1), {"saturated low": 3, "saturated high": 1}),
}


@pytest.mark.parametrize("activation", SATURATED)
def test_the_kind_of_death_is_said(activation: str):
    module, kinds = SATURATED[activation]
    net = nn.Sequential(make_linear(4), module, make_linear(1, 4))
    for unit, bias in enumerate((-200, 200, 0.5)):
        set_constant_units(net[0], unit, bias)
    result = fit(net, make_inputs(8, 6), make_inputs(7, 6), optimizer=zero_lr_optimizer)
    assert result.dead.activity["net.1"].kinds == kinds
    assert result.dead.activity["net.1"].dead == sum(kinds.values())


@pytest.mark.parametrize(
    ("kind", "bias", "expected"), [("rnn", 200.0, "saturated high"), ("rnn", -200.0, "saturated low")]
)
def test_a_recurrent_unit_may_be_saturated(kind: str, bias: float, expected: str):
    cell: Any = nn.RNN(6, 3, batch_first=True)
    with torch.no_grad():
        cell.bias_ih_l0[1] = bias
    net = NamedLayers(lambda net, x: net.out(net.cell(x)[0]), cell=cell, out=make_linear(1, 3))
    result = fit(net, make_inputs(8, 5, 6), make_inputs(7, 5, 6), optimizer=zero_lr_optimizer)
    assert result["net.cell"] == [False, True, False]
    assert result.dead.activity["net.cell"].kinds == {expected: 1}


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_every_precision_is_exact(precision: Any):
    net = mlp(6, 5, 1)
    set_constant_units(net[0], 0, -100)
    set_constant_units(net[0], 1, 0.3)
    result = fit(net, make_inputs(8, 6), make_inputs(7, 6), optimizer=zero_lr_optimizer, precision=precision)
    assert result["net.1"][:2] == [True, True]
    data = result.trainer.precision_plugin.convert_input(make_inputs(7, 6))
    with torch.inference_mode(), result.trainer.precision_plugin.forward_context():
        outputs = [net[1](net[0](batch)) for batch in data.split(4)]
    assert result["net.1"] == constant_units(torch.cat(outputs), 1)
    assert result.dead.activity["net.1"].kinds["zero"] >= 1


def test_a_unit_that_is_not_a_number_is_not_dead():
    net = mlp(6, 4, 1)
    set_unit_weights(net[0], 0, bias=float("nan"))
    set_constant_units(net[0], 1, float("inf"))
    set_constant_units(net[0], 2, -1)
    dead = make_detector()
    make_trainer(callbacks=[dead]).validate(ValidatedModule(net), make_loader(make_inputs(7, 6)), verbose=False)
    assert dead.dead_units["net.1"].tolist() == [False, True, True, False]
    assert dead.activity["net.1"].kinds == {"constant": 1, "zero": 1}


class ConvMaxout(nn.Module):
    """Channels of two pieces each, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = MaxoutPieces(dim=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pieces(x.unflatten(1, (-1, 2))).amax(2)


def test_a_piece_that_never_wins_is_dead_and_its_unit_is_not():
    net = nn.Sequential(make_linear(12), Maxout(3), make_linear(1, 4))
    set_unit_weights(net[0], 4, bias=-100)  # the second piece of the second unit
    result = fit(net, make_inputs(16, 6), make_inputs(64, 6))
    assert [piece for piece, dead in enumerate(result["net.1.pieces"]) if dead] == [4]
    assert result["net.1"] == [False] * 4
    activity = result.dead.activity["net.1.pieces"]
    assert (activity.units, activity.kinds, activity.inputs) == (12, {"never wins": 1}, 64)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_pieces_of_convolutions_may_win_at_any_position(kind: Any):
    torch.manual_seed(0)
    net = nn.Sequential(kind(1, 6, 3), ConvMaxout(), nn.Flatten(), nn.LazyLinear(1))
    shape = (1, 8) if kind is nn.Conv1d else (1, 6, 6)
    net(make_inputs(2, *shape))
    set_unit_weights(net[0], 3, bias=-100)
    set_constant_units(net[0], slice(4, 6), 1)  # a unit whose pieces are one
    val = make_inputs(7, *shape)
    result = fit(net, make_inputs(8, *shape), val, optimizer=zero_lr_optimizer)
    assert [piece for piece, dead in enumerate(result["net.1.pieces"]) if dead] == [3]
    assert result["net.1"] == [False, False, True]


def test_pieces_are_counted_over_batches():
    net = nn.Sequential(nn.Linear(1, 2), Maxout(2), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.zero_()
    assert fit(net, ABOVE, ABOVE, optimizer=zero_lr_optimizer)["net.1.pieces"] == [False, True]
    assert fit(net, ABOVE, torch.cat([ABOVE, BELOW]), optimizer=zero_lr_optimizer)["net.1.pieces"] == [False, False]

"""In which way units are dead, in every precision, and pieces that never win."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stormproof import Pieces
from tests.stormproof.units.unit_fits import (
    ABOVE,
    BELOW,
    Maxout,
    Named,
    Validated,
    batches,
    constant,
    dense,
    fit,
    inputs,
    mlp,
    quiet,
    set_,
    set_row,
    still,
)
from tests.support.small_fits import LIGHTNINGS_OWN, trainer

pytestmark = LIGHTNINGS_OWN


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
    net = nn.Sequential(dense(4), module, dense(1, 4))
    for unit, bias in enumerate((-200, 200, 0.5)):
        set_row(net[0], unit, bias)
    done = fit(net, inputs(8, 6), inputs(7, 6), optimizer=still)
    assert done.dead.activity["net.1"].kinds == kinds
    assert done.dead.activity["net.1"].dead == sum(kinds.values())


@pytest.mark.parametrize(
    ("kind", "bias", "expected"), [("rnn", 200.0, "saturated high"), ("rnn", -200.0, "saturated low")]
)
def test_a_recurrent_unit_may_be_saturated(kind: str, bias: float, expected: str):
    cell: Any = nn.RNN(6, 3, batch_first=True)
    with torch.no_grad():
        cell.bias_ih_l0[1] = bias
    net = Named(lambda net, x: net.out(net.cell(x)[0]), cell=cell, out=dense(1, 3))
    done = fit(net, inputs(8, 5, 6), inputs(7, 5, 6), optimizer=still)
    assert done["net.cell"] == [False, True, False]
    assert done.dead.activity["net.cell"].kinds == {expected: 1}


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_every_precision_is_exact(precision: Any):
    net = mlp(6, 5, 1)
    set_row(net[0], 0, -100)
    set_row(net[0], 1, 0.3)
    done = fit(net, inputs(8, 6), inputs(7, 6), optimizer=still, precision=precision)
    assert done["net.1"][:2] == [True, True]
    data = done.trainer.precision_plugin.convert_input(inputs(7, 6))
    with torch.inference_mode(), done.trainer.precision_plugin.forward_context():
        outputs = [net[1](net[0](batch)) for batch in data.split(4)]
    assert done["net.1"] == constant(torch.cat(outputs), 1)
    assert done.dead.activity["net.1"].kinds["zero"] >= 1


def test_a_unit_that_is_not_a_number_is_not_dead():
    net = mlp(6, 4, 1)
    set_(net[0], 0, bias=float("nan"))
    set_row(net[0], 1, float("inf"))
    set_row(net[0], 2, -1)
    dead = quiet()
    trainer(callbacks=[dead]).validate(Validated(net), batches(inputs(7, 6)), verbose=False)
    assert dead.dead_units["net.1"].tolist() == [False, True, True, False]
    assert dead.activity["net.1"].kinds == {"constant": 1, "zero": 1}


class ConvMaxout(nn.Module):
    """Channels of two pieces each, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = Pieces(dim=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pieces(x.unflatten(1, (-1, 2))).amax(2)


def test_a_piece_that_never_wins_is_dead_and_its_unit_is_not():
    net = nn.Sequential(dense(12), Maxout(3), dense(1, 4))
    set_(net[0], 4, bias=-100)  # the second piece of the second unit
    done = fit(net, inputs(16, 6), inputs(64, 6))
    assert [piece for piece, dead in enumerate(done["net.1.pieces"]) if dead] == [4]
    assert done["net.1"] == [False] * 4
    activity = done.dead.activity["net.1.pieces"]
    assert (activity.units, activity.kinds, activity.inputs) == (12, {"never wins": 1}, 64)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_pieces_of_convolutions_may_win_at_any_position(kind: Any):
    torch.manual_seed(0)
    net = nn.Sequential(kind(1, 6, 3), ConvMaxout(), nn.Flatten(), nn.LazyLinear(1))
    shape = (1, 8) if kind is nn.Conv1d else (1, 6, 6)
    net(inputs(2, *shape))
    set_(net[0], 3, bias=-100)
    set_row(net[0], slice(4, 6), 1)  # a unit whose pieces are one
    val = inputs(7, *shape)
    done = fit(net, inputs(8, *shape), val, optimizer=still)
    assert [piece for piece, dead in enumerate(done["net.1.pieces"]) if dead] == [3]
    assert done["net.1"] == [False, False, True]


def test_pieces_are_counted_over_batches():
    net = nn.Sequential(nn.Linear(1, 2), Maxout(2), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.zero_()
    assert fit(net, ABOVE, ABOVE, optimizer=still)["net.1.pieces"] == [False, True]
    assert fit(net, ABOVE, torch.cat([ABOVE, BELOW]), optimizer=still)["net.1.pieces"] == [False, False]

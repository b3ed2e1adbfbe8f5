"""Outputs of recurrent networks are units, over all steps and without the padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.stormproof.units.unit_fits import (
    Named,
    dense,
    fit,
    inputs,
    still,
)
from tests.support.small_fits import LIGHTNINGS_OWN

pytestmark = [*LIGHTNINGS_OWN, pytest.mark.filterwarnings("ignore:.*cannot be told.*")]

RECURRENT: dict[str, Callable[..., nn.Module]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_outputs_of_a_recurrent_network_are_units(kind: str, batch_first: bool, bidirectional: bool):
    torch.manual_seed(0)
    cell: Any = RECURRENT[kind](6, 3, batch_first=batch_first, bidirectional=bidirectional)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if not name.endswith("reverse"):
                parameter.zero_()

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.cell(x if batch_first else x.transpose(0, 1))[0])

    width = 6 if bidirectional else 3
    done = fit(Named(run, cell=cell, out=dense(1, width)), inputs(8, 5, 6), inputs(7, 5, 6), optimizer=still)
    assert done["net.cell"] == [True] * 3 + [False] * (width - 3)
    assert done.dead.activity["net.cell"].inputs == 7
    assert done.dead.activity["net.cell"].kinds == {"zero": 3}


def test_padding_of_packed_sequences_is_no_output():
    torch.manual_seed(0)
    cell = nn.RNN(1, 2, batch_first=True, nonlinearity="relu")
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.bias_ih_l0[0] = 3.0

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        packed, _ = net.cell(pack_padded_sequence(x, torch.arange(len(x), 0, -1), batch_first=True))
        return net.out(packed.data)

    done = fit(Named(run, cell=cell, out=dense(1, 2)), inputs(4, 5, 1), inputs(6, 5, 1), optimizer=still)
    assert done["net.cell"] == [True, True]  # 3 throughout, where a padded output would go on with 0
    assert done.dead.activity["net.cell"].kinds == {"constant": 1, "zero": 1}
    assert done.dead.activity["net.cell"].inputs == 6


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_is_watched_over_all_its_steps(cell: Any):
    torch.manual_seed(0)
    one = cell(6, 3)

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in x.unbind(1):
            state = net.cell(step, state)
        return net.out(state[0] if isinstance(state, tuple) else state)

    done = fit(Named(run, cell=one, out=dense(1, 3)), inputs(8, 5, 6), inputs(7, 5, 6))
    assert done["net.cell"] == [False] * 3
    assert done.dead.activity["net.cell"].inputs == 7


def test_an_activation_behind_a_recurrent_network_has_its_units():
    """Not those of the layer before it, of which there are as many as steps."""
    net = Named(
        lambda net, x: net.out(net.act(net.gru(net.a(x))[0])),
        a=dense(10),
        gru=nn.GRU(10, 3, batch_first=True),
        act=nn.Tanh(),
        out=dense(1, 3),
    )
    done = fit(net, inputs(8, 10, 6), inputs(7, 10, 6), optimizer=still)
    assert done["net.act"] == [False] * 3
    assert done.dead.activity["net.act"].layer == "net.gru"
    assert done.dead.activity["net.gru"].layer == "net.gru"

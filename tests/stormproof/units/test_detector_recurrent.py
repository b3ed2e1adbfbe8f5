"""Outputs of recurrent networks are units, over all steps and without the padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.stormproof.units.unit_fits import (
    NamedLayers,
    fit,
    make_inputs,
    make_linear,
    zero_lr_optimizer,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.filterwarnings("ignore:.*consuming layer is unknown.*")]

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
    result = fit(
        NamedLayers(run, cell=cell, out=make_linear(1, width)),
        make_inputs(8, 5, 6),
        make_inputs(7, 5, 6),
        optimizer=zero_lr_optimizer,
    )
    assert result["net.cell"] == [True] * 3 + [False] * (width - 3)
    assert result.dead.activity["net.cell"].inputs == 7
    assert result.dead.activity["net.cell"].kinds == {"zero": 3}


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

    result = fit(
        NamedLayers(run, cell=cell, out=make_linear(1, 2)),
        make_inputs(4, 5, 1),
        make_inputs(6, 5, 1),
        optimizer=zero_lr_optimizer,
    )
    assert result["net.cell"] == [True, True]  # 3 throughout, where a padded output would go on with 0
    assert result.dead.activity["net.cell"].kinds == {"constant": 1, "zero": 1}
    assert result.dead.activity["net.cell"].inputs == 6


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_is_watched_over_all_its_steps(cell: Any):
    torch.manual_seed(0)
    cell_module = cell(6, 3)

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in x.unbind(1):
            state = net.cell(step, state)
        return net.out(state[0] if isinstance(state, tuple) else state)

    result = fit(NamedLayers(run, cell=cell_module, out=make_linear(1, 3)), make_inputs(8, 5, 6), make_inputs(7, 5, 6))
    assert result["net.cell"] == [False] * 3
    assert result.dead.activity["net.cell"].inputs == 7


def test_an_activation_behind_a_recurrent_network_has_its_units():
    """Not those of the layer before it, of which there are as many as steps."""
    net = NamedLayers(
        lambda net, x: net.out(net.act(net.gru(net.a(x))[0])),
        a=make_linear(10),
        gru=nn.GRU(10, 3, batch_first=True),
        act=nn.Tanh(),
        out=make_linear(1, 3),
    )
    result = fit(net, make_inputs(8, 10, 6), make_inputs(7, 10, 6), optimizer=zero_lr_optimizer)
    assert result["net.act"] == [False] * 3
    assert result.dead.activity["net.act"].layer == "net.gru"
    assert result.dead.activity["net.gru"].layer == "net.gru"

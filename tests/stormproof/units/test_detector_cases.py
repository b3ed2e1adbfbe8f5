"""Where the units are, in networks of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.stormproof.units.unit_fits import (
    NamedLayers,
    fit,
    make_conv,
    make_inputs,
    make_linear,
    set_constant_units,
    set_unit_weights,
    zero_lr_optimizer,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.filterwarnings("ignore:.*consuming layer is unknown.*")]


class OwnPlus(nn.Module):
    """An activation of somebody's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0)


def two_heads(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = functional.relu(net.a(x))
    return net.b(h) + net.c(h)


def loop(net: Any, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = net.act(net.a(x))
    return net.out(x)


def gelu_then_in_place_sum(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = net.act(net.a(x))
    h += x
    return net.out(h)


PADDING = 9.0
IMAGES, TOKENS, ROWS = (1, 6, 6), (5, 6), (6,)
PLACES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], dict[str, list[int]]]] = {
    "a module behind a dense layer": (
        ROWS,
        lambda: nn.Sequential(make_linear(4, dead=1), nn.ReLU(), make_linear(1, 4)),
        {"net.1": [1]},
    ),
    "a function, seen where it is consumed": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.relu(net.a(x))), a=make_linear(4, dead=1), out=make_linear(1, 4)
        ),
        {"net.out": [1]},
    ),
    "an activation of one's own": (
        ROWS,
        lambda: nn.Sequential(make_linear(4, dead=1), OwnPlus(), make_linear(1, 4)),
        {"net.1": [1]},
    ),
    "one that is applied before any layer": (ROWS, lambda: nn.Sequential(nn.ReLU(), make_linear(1)), {"net.0": []}),
    "channels of a convolution, over all positions": (
        IMAGES,
        lambda: nn.Sequential(make_conv(3, 2), nn.ReLU(), nn.Flatten(), make_linear(1, 48)),
        {"net.1": [2]},
    ),
    "a convolution with batch norm, in place": (
        IMAGES,
        lambda: nn.Sequential(
            set_constant_units(make_conv(3, 2), 2, -1),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            make_linear(1, 48),
        ),
        {"net.2": [2]},
    ),
    "as in LeNet: function, pool, flatten": (
        IMAGES,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.max_pool2d(functional.relu(net.a(x)), 2).flatten(1)),
            a=make_conv(3, 2),
            out=make_linear(1, 12),
        ),
        {"net.out": [2]},
    ),
    "channels flattened behind their positions": (
        IMAGES,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.relu(net.a(x)).permute(0, 2, 3, 1).flatten(1)),
            a=make_conv(3, 2),
            out=make_linear(1, 48),
        ),
        {"net.out": [2]},
    ),
    "a mean over positions": (
        IMAGES,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.relu(net.a(x)).mean((2, 3))), a=make_conv(3, 2), out=make_linear(1, 3)
        ),
        {"net.out": [2]},
    ),
    "positions that were flattened before the activation": (
        IMAGES,
        lambda: nn.Sequential(make_conv(3, 2), nn.Flatten(), nn.ReLU(), make_linear(1, 48)),
        {"net.2": list(range(32, 48))},
    ),
    "a convolution in one dimension": (
        (2, 9),
        lambda: nn.Sequential(make_conv(3, 1, 2, nn.Conv1d), nn.ReLU(), nn.Flatten(), make_linear(1, 21)),
        {"net.1": [1]},
    ),
    "as many channels as positions": (
        (2, 6),
        lambda: nn.Sequential(make_conv(4, 1, 2, nn.Conv1d), nn.ReLU(), nn.Flatten(), make_linear(1, 16)),
        {"net.1": [1]},
    ),
    "a transposed convolution": (
        IMAGES,
        lambda: nn.Sequential(make_conv(3, 1, 1, nn.ConvTranspose2d), nn.ReLU(), nn.Flatten(), make_linear(1, 192)),
        {"net.1": [1]},
    ),
    "channels that became the last dimension, twice the positions": (
        (6, 4),
        lambda: NamedLayers(
            lambda net, x: net.out(net.act(net.a(x).transpose(1, 2))),
            a=make_conv(4, 1, 6, nn.Conv1d),
            act=nn.ReLU(),
            out=make_linear(1, 4),
        ),
        {"net.act": [1]},
    ),
    "tokens": (TOKENS, lambda: nn.Sequential(make_linear(4, dead=1), nn.ReLU(), make_linear(1, 4)), {"net.1": [1]}),
    "as many tokens as units": (
        (4, 6),
        lambda: nn.Sequential(make_linear(4, dead=1), nn.ReLU(), make_linear(1, 4)),
        {"net.1": [1]},
    ),
    "tokens, flattened": (
        TOKENS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.relu(net.a(x)).flatten(1)),
            a=make_linear(4, dead=1),
            out=make_linear(1, 20),
        ),
        {"net.out": [1]},
    ),
    "a layer that mixes tokens": (
        TOKENS,
        lambda: NamedLayers(
            lambda net, x: net.mix(functional.relu(net.a(x)).transpose(1, 2)),
            a=make_linear(4, dead=1),
            mix=make_linear(2, 5),
        ),
        {"net.mix": [1]},
    ),
    "a GLU whose gate is shut": (
        ROWS,
        lambda: nn.Sequential(set_constant_units(make_linear(8), 5, -200), nn.GLU(), make_linear(1, 4)),
        {"net.1": [1]},
    ),
    "a GLU over as many tokens as it has inputs": (
        (8, 6),
        lambda: nn.Sequential(set_constant_units(make_linear(8), 5, -200), nn.GLU(), make_linear(1, 4)),
        {"net.1": [1]},
    ),
    "a GLU of channels": (
        IMAGES,
        lambda: nn.Sequential(
            set_constant_units(make_conv(4, 3), 3, -200), nn.GLU(1), nn.Flatten(), make_linear(1, 32)
        ),
        {"net.1": [1]},
    ),
    "a functional GLU": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.glu(net.a(x))),
            a=set_constant_units(make_linear(8), 5, -200),
            out=make_linear(1, 4),
        ),
        {"net.out": [1]},
    ),
    "a functional GLU of channels": (
        (2, 9),
        lambda: NamedLayers(
            lambda net, x: net.out(functional.glu(net.a(x), 1)),
            a=set_constant_units(make_conv(8, 5, 2, nn.Conv1d), 5, -200),
            out=nn.Conv1d(4, 1, 1),
        ),
        {"net.out": [1]},
    ),
    "a layer that takes an activation first and something else then": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.relu(net.a(x))) + net.out(x),
            a=make_linear(6, dead=1),
            out=make_linear(1, 6),
        ),
        {"net.out": [1]},
    ),
    "a product with a SiLU": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.silu(net.a(x)) * net.b(x)),
            a=make_linear(4),
            b=set_constant_units(make_linear(4), 2, 0),
            out=make_linear(1, 4),
        ),
        {"net.out": [2]},
    ),
    "a gate written first": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(net.b(x) * torch.sigmoid(net.a(x))),
            a=set_constant_units(make_linear(4), 2, -200),
            b=make_linear(4),
            out=make_linear(1, 4),
        ),
        {"net.out": [2]},
    ),
    "the square of a ReLU": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.relu(net.a(x)).square()), a=make_linear(4, dead=1), out=make_linear(1, 4)
        ),
        {"net.out": [1]},
    ),
    "an activation that two layers share": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(net.act(net.b(net.act(net.a(x))))),
            act=nn.ReLU(),
            a=make_linear(4, dead=1),
            b=make_linear(5, 4, dead=3),
            out=make_linear(1, 5),
        ),
        {"net.act@net.a": [1], "net.act@net.b": [3]},
    ),
    "a layer that is called again and again": (
        ROWS,
        lambda: NamedLayers(loop, a=make_linear(6, dead=1), act=nn.Tanh(), out=make_linear(1, 6)),
        {"net.act": [1]},
    ),
    "a function that two layers consume, at the first": (
        ROWS,
        lambda: NamedLayers(
            two_heads,
            a=make_linear(4, dead=1),
            b=make_linear(2, 4),
            c=make_linear(2, 4),
        ),
        {"net.b": [1]},
    ),
    "a layer that consumes two functions in turn": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.relu(net.a(x))) + net.out(functional.relu(net.b(x))),
            a=make_linear(4, dead=1),
            b=make_linear(4, dead=2),
            out=make_linear(1, 4),
        ),
        {"net.out@net.a": [1], "net.out@net.b": [2]},
    ),
    "a module in place, then added to": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(x + net.act(net.a(x))),
            a=make_linear(6, dead=1),
            act=nn.ReLU(True),
            out=make_linear(1, 6),
        ),
        {"net.act": [1]},
    ),
    "an output that is changed in place afterwards": (
        ROWS,
        lambda: NamedLayers(
            gelu_then_in_place_sum, a=set_constant_units(make_linear(6), 1, 0), act=nn.GELU(), out=make_linear(1, 6)
        ),
        {"net.act": [1]},
    ),
    "a functional one that is changed in place before it is consumed is none any more": (
        ROWS,
        lambda: NamedLayers(
            lambda net, x: net.out(functional.gelu(net.a(x)).add_(x)),
            a=set_constant_units(make_linear(6), 1, 0),
            out=make_linear(1, 6),
        ),
        {},
    ),
    "all units of a dead layer": (
        ROWS,
        lambda: nn.Sequential(set_constant_units(make_linear(3), slice(None), -100), nn.ReLU(), make_linear(1, 3)),
        {"net.1": [0, 1, 2]},
    ),
    "layers inside of layers": (
        ROWS,
        lambda: nn.Sequential(nn.Sequential(make_linear(4, dead=1), nn.Sequential(nn.ReLU())), make_linear(1, 4)),
        {"net.0.1.0": [1]},
    ),
    "a transformer's feed-forward part": (
        (5, 4),
        lambda: nn.Sequential(transformer(batch_first=True), make_linear(1, 4)),
        {"net.0.linear2": [3]},
    ),
    "a transformer with an activation module": (
        (5, 4),
        lambda: nn.Sequential(transformer(batch_first=True, activation=nn.ReLU()), make_linear(1, 4)),
        {"net.0.activation": [3]},
    ),
    "a network without activations": (ROWS, lambda: nn.Sequential(make_linear(4), make_linear(1, 4)), {}),
}


def transformer(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, **options)
    set_unit_weights(layer.linear1, slice(None), bias=1)
    set_unit_weights(layer.linear1, 3, bias=-100)
    return layer


@pytest.mark.parametrize("case", PLACES)
def test_units_are_found_in(case: str):
    """The other units are alive: so many inputs leave none of these out."""
    shape, make, expected = PLACES[case]
    torch.manual_seed(0)
    result = fit(make(), make_inputs(8, *shape), make_inputs(50, *shape, seed=1), optimizer=zero_lr_optimizer, size=16)
    dead_units = {name: [unit for unit, dead in enumerate(result[name]) if dead] for name in result.dead.dead_units}
    assert dead_units == expected
    assert all(activity.inputs == 50 for activity in result.dead.activity.values())


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()])
@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage.*")
def test_tokens_that_a_transformer_leaves_out_are_no_outputs(activation: Any, sanity: int):
    """In evaluation mode it nests what is not padding."""

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.encoder(x, src_key_padding_mask=x[..., 0] == PADDING))

    def padded(count: int) -> torch.Tensor:
        x = make_inputs(count, 5, 4)
        x[::2, 3:] = PADDING
        return x

    encoder = nn.TransformerEncoder(transformer(batch_first=True, activation=activation), 2)
    net = NamedLayers(run, encoder=encoder, out=make_linear(1, 4))
    result = fit(net, padded(8), padded(50), optimizer=zero_lr_optimizer, size=16, num_sanity_val_steps=sanity)
    places = [
        f"net.encoder.layers.{layer}." + ("linear2" if activation == "relu" else "activation") for layer in (0, 1)
    ]
    assert [result[position].index(True) for position in places] == [3, 3]
    assert all(sum(result[position]) == 1 for position in places)
    assert all(result.dead.activity[position].inputs == 50 for position in places)

"""Every activation that torch has as a function is found, and what passes its output on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from stormproof.units.functional_trace import FunctionalTrace, UnitLayout

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    name: getattr(functional, name)
    for name in (
        "relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign",
        "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink", "logsigmoid", "glu",
        "relu_", "leaky_relu_", "rrelu_", "elu_", "selu_", "celu_", "hardtanh_",
    )
}  # fmt: skip
ACTIVATIONS |= {
    "prelu": lambda x: functional.prelu(x, torch.ones(1)),
    "threshold": lambda x: functional.threshold(x, 0.1, 0.2),
    "threshold_": lambda x: functional.threshold_(x, 0.1, 0.2),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: functional.log_softmax(x, -1),
    "softmin": lambda x: functional.softmin(x, -1),
    "torch.relu": torch.relu,
    "x.relu()": torch.Tensor.relu,
    "x.relu_()": torch.Tensor.relu_,
    "torch.sigmoid": torch.sigmoid,
    "x.sigmoid()": torch.Tensor.sigmoid,
    "x.sigmoid_()": torch.Tensor.sigmoid_,
    "functional.sigmoid": torch.special.expit,
    "torch.tanh": torch.tanh,
    "x.tanh_()": torch.Tensor.tanh_,
    "x.clamp(min=0)": lambda x: x.clamp(min=0),
    "x.clip(0, 1)": lambda x: x.clip(0, 1),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "by keyword": lambda x: functional.relu(input=x),
    "in place by keyword": lambda x: functional.relu(x, inplace=True),
}


def trace_flow(function: Callable[[torch.Tensor], Any], x: torch.Tensor, axis: int = -1) -> UnitLayout | None:
    with FunctionalTrace(lambda name, shape: ("layer", axis)) as flows:
        return flows.layout_of(function(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_found(name: str):
    flow = trace_flow(ACTIVATIONS[name], torch.randn(3, 4))
    assert flow is not None
    assert flow.call.layer == "layer"
    assert flow.call.function


PASSING: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int, list[int] | None]] = {
    # of (2, 3, 4, 4) with its units along the second dimension: the dimension then, and which unit is where
    "nothing": (lambda x: x, -3, None),
    "max pooling": (lambda x: functional.max_pool2d(x, 2), -3, None),
    "average pooling": (lambda x: functional.adaptive_avg_pool2d(x, 1), -3, None),
    "dropout": (functional.dropout, -3, None),
    "another type": (lambda x: x.double().to(torch.bfloat16).contiguous().clone(), -3, None),
    "padding": (lambda x: functional.pad(x, (1, 1)), -3, None),
    "a gate": (lambda x: x * torch.ones(2, 3, 1, 1), -3, None),
    "a gate before it": (lambda x: torch.ones(()) * x, -3, None),
    "half of it": (lambda x: x / 2, -3, None),
    "flatten": (lambda x: x.flatten(1), -1, [0] * 16 + [1] * 16 + [2] * 16),
    "torch.flatten": (lambda x: torch.flatten(x, 1), -1, [0] * 16 + [1] * 16 + [2] * 16),
    "view": (lambda x: x.view(2, -1), -1, [0] * 16 + [1] * 16 + [2] * 16),
    "positions alone": (lambda x: x.flatten(2), -2, None),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), -1, None),
    "channels last, flattened": (lambda x: x.permute(0, 2, 3, 1).flatten(1), -1, [0, 1, 2] * 16),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), -1, None),
    "movedim": (lambda x: x.movedim(1, -1), -1, None),
    "mean": (lambda x: x.mean((2, 3)), -1, None),
    "mean by keyword": (lambda x: torch.mean(x, dim=(2, 3), keepdim=True), -3, None),
    "largest": (lambda x: x.amax(-1), -2, None),
    "unsqueeze": (lambda x: x.unsqueeze(-1), -4, None),
    "pool, flatten, dropout": (
        lambda x: functional.dropout(functional.avg_pool2d(x, 2).flatten(1)),
        -1,
        [0] * 4 + [1] * 4 + [2] * 4,
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_units_are_followed_to_where_they_lie(name: str):
    function, dimension, units = PASSING[name]
    flow = trace_flow(lambda x: function(x.relu()), torch.randn(2, 3, 4, 4), axis=-3)
    assert flow is not None
    assert (flow.call.function, flow.dimension, flow.count) == ("relu", dimension, 3)
    assert (None if flow.units is None else flow.units.tolist()) == units
    positions = flow.positions()
    if positions is None or units is None:
        assert positions is None is units
    else:
        assert [[units[position] for position in unit] for unit in positions.tolist()] == [
            [unit] * (len(units) // 3) for unit in range(3)
        ]


LOST: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "something added": lambda x: x + 1,
    "something added in place": lambda x: x.add_(1),
    "some of it": lambda x: x[:, :2],
    "the mean over units": lambda x: x.mean(1),
    "the largest of all units": lambda x: x.amax(1),
    "units in the samples": lambda x: x.flatten(0, 1),
    "units along two dimensions": lambda x: torch.cat([x, x[:, :1]], 1).relu().view(2, 2, 2, 4, 4),
    "put beside another": lambda x: torch.cat([x, x], 1),
    "a norm": lambda x: functional.layer_norm(x, (4,)),
    "a number": lambda x: x.sum(),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_something_else_is_no_longer_followed(name: str):
    flow = trace_flow(lambda x: LOST[name](x.relu()), torch.randn(2, 3, 4, 4), axis=-3)
    assert flow is None


@pytest.mark.parametrize(
    ("function", "uses"),
    [
        (lambda h: h.flatten(1), 0),
        (lambda h: h + 1, 1),
        (lambda h: torch.cat([h, h], 1), 2),
        (lambda h: h.chunk(2, 1), 1),
        (lambda h: (h.shape, h.device, h.requires_grad, h.ndim, h.numel()), 0),
        (lambda h: h.flatten(1) @ torch.ones(48, 1) + h.sum(), 2),
        (lambda h: functional.batch_norm(h, torch.zeros(3), torch.ones(3)), 1),
    ],
)
def test_who_else_takes_an_output_is_counted(function: Any, uses: int):
    with FunctionalTrace(lambda name, shape: ("layer", -3)) as flows:
        h = torch.randn(2, 3, 4, 4).relu()
        function(h)
    flow = flows.layout_of(h)
    assert flow is not None
    assert flow.call.untracked_uses == uses


def test_it_calls_what_is_called_and_keeps_nothing_alive():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    plain = net(x)
    with FunctionalTrace(lambda name, shape: ("layer", -1)) as flows:
        h = functional.relu(net[0](x))
        reference = weakref.ref(h)
        assert torch.equal(net[2](h), plain)
    assert flows.layout_of(h) is not None
    del h
    gc.collect()
    assert reference() is None

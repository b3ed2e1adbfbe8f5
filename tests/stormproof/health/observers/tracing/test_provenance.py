"""The origins of tensors are tracked."""

import math
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)

from stormproof.health.observers.tracing.provenance import (
    BATCH_DEPTH,
    Bounds,
    Origin,
    ProvenanceTracker,
    iter_tensors,
)

CUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "detach": lambda hidden: hidden.detach(),
    "data": lambda hidden: hidden.data,
    "argmax": lambda hidden: F.one_hot(hidden.argmax(1), 4).float(),
    "round": lambda hidden: hidden.round(),
    "sign in place": lambda hidden: (1 * hidden).sign_(),
}


def trace_step(network: nn.Module, step: Callable[[torch.Tensor], torch.Tensor]) -> Origin:
    inputs = torch.randn(5, 3)
    names = {id(parameter): name.rpartition(".")[0] for name, parameter in network.named_parameters()}
    origins = ProvenanceTracker(names, [inputs], _nothing)
    with origins:
        outputs = step(inputs)
    return origins.origin_of(outputs)


def _nothing(*_: Any) -> None: ...


@pytest.fixture
def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_an_output_comes_from_all_layers_and_the_batch(two_layers: nn.Sequential):
    origin = trace_step(two_layers, lambda inputs: two_layers(inputs).softmax(1).view(-1))
    assert origin == Origin(
        frozenset("01"),
        frozenset("01"),
        frozenset({0}),
        producer="softmax",
        layer="1",
        bounds=Bounds("softmax", 0, 1),
    )


BOUNDED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Bounds]] = {
    "scaled and shifted": (lambda outputs: 1 + 4 * outputs.sigmoid(), Bounds("sigmoid", 1, 5)),
    "subtracted from a number": (lambda outputs: (1 - outputs.sigmoid()).flatten(), Bounds("sigmoid", 0, 1)),
    "negated": (lambda outputs: -outputs.relu_(), Bounds("relu", -math.inf, 0)),
    "divided and shifted": (lambda outputs: outputs.tanh() / 2 - 3, Bounds("tanh", -3.5, -2.5)),
    "times a negative number": (lambda outputs: F.softplus(outputs).mul(-2), Bounds("softplus", -math.inf, 0)),
    "in place": (lambda outputs: outputs.sigmoid().add_(1), Bounds("sigmoid", 1, 2)),
    "hardtanh": (lambda outputs: F.hardtanh(outputs, -2, 2), Bounds("hardtanh", -2, 2)),
    "module of hardtanh": (nn.ReLU6(), Bounds("hardtanh", 0, 6)),
    "absolute value": (abs, Bounds("abs", 0, math.inf)),
    "cosine": (lambda outputs: F.cosine_similarity(outputs, torch.ones(5, 2)), Bounds("cosine_similarity", -1, 1)),
}
UNBOUNDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda outputs: outputs + 1,
    "plus a tensor": lambda outputs: outputs.sigmoid() + torch.ones(5, 2),
    "in the denominator": lambda outputs: 1 / outputs.sigmoid(),
    "times zero": lambda outputs: outputs.sigmoid() * 0,
    "logarithm": lambda outputs: outputs.sigmoid().log(),
}


@pytest.mark.parametrize("case", BOUNDED)
def test_the_range_of_an_activation_is_tracked_through_arithmetic_with_numbers(two_layers: nn.Sequential, case: str):
    function, bounds = BOUNDED[case]
    assert trace_step(two_layers, lambda inputs: function(two_layers(inputs))).bounds == bounds


def test_a_view_leaves_the_range_unless_it_is_changed_in_place(two_layers: nn.Sequential):
    def read_view(inputs: torch.Tensor) -> torch.Tensor:
        outputs = two_layers(inputs).sigmoid()
        outputs[:, :1].sum()
        return outputs

    def change_view(inputs: torch.Tensor) -> torch.Tensor:
        outputs = two_layers(inputs).sigmoid()
        outputs[:, :1].mul_(20)
        return outputs

    kept, changed = trace_step(two_layers, read_view), trace_step(two_layers, change_view)
    assert (kept.producer, kept.bounds) == ("sigmoid", Bounds("sigmoid", 0, 1))
    assert (changed.producer, changed.bounds) == ("mul_", None)


@pytest.mark.parametrize("case", UNBOUNDED)
def test_an_unknown_range_has_no_bounds(two_layers: nn.Sequential, case: str):
    assert trace_step(two_layers, lambda inputs: UNBOUNDED[case](two_layers(inputs))).bounds is None


def test_a_sigmoid_that_is_taken_twice_is_called_so(two_layers: nn.Sequential):
    assert trace_step(two_layers, lambda inputs: two_layers(inputs).sigmoid().view(-1)).producer == "sigmoid"
    assert (
        trace_step(two_layers, lambda inputs: two_layers(inputs).sigmoid().sigmoid()).producer == "sigmoid of sigmoid"
    )


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_leaves_the_layers_before_it_without_a_gradient(two_layers: nn.Sequential, cut: str):
    origin = trace_step(two_layers, lambda inputs: two_layers[1](CUTS[cut](two_layers[0](inputs))))
    assert (origin.layers, origin.differentiable_layers) == (frozenset("01"), frozenset("1"))
    assert origin.detached_by is not None


def test_a_straight_way_past_it_keeps_the_layer_alive(two_layers: nn.Sequential):
    def rounded(batch: torch.Tensor) -> torch.Tensor:
        hidden = two_layers[0](batch)
        return two_layers[1](hidden + (hidden.round() - hidden).detach()).sum()

    assert trace_step(two_layers, rounded).differentiable_layers == {"0", "1"}


def test_no_grad_cuts(two_layers: nn.Sequential):
    def step(inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden = two_layers[0](inputs)
        return two_layers[1](hidden)

    assert trace_step(two_layers, step).detached_by == "no_grad"


def test_a_second_way_around_a_cut_keeps_the_layer_alive(two_layers: nn.Sequential):
    def step(inputs: torch.Tensor) -> torch.Tensor:
        hidden = two_layers[0](inputs)
        return two_layers[1](hidden.detach()) + two_layers[1](hidden)

    assert trace_step(two_layers, step).differentiable_layers == frozenset("01")


def test_what_is_written_in_place_comes_from_what_was_written(two_layers: nn.Sequential):
    def step(inputs: torch.Tensor) -> torch.Tensor:
        outputs = torch.zeros(5, 2)
        outputs[:, 0] = two_layers(inputs)[:, 0]
        return outputs

    assert trace_step(two_layers, step).differentiable_layers == frozenset("01")


@pytest.mark.parametrize("layer", [nn.LSTM(3, 4), nn.GRU(3, 4), nn.RNN(3, 4)])
def test_recurrent_layers_are_followed(layer: nn.Module):
    origin = trace_step(nn.ModuleDict({"recurrent": layer}), lambda inputs: layer(inputs)[0])
    assert origin.layers == frozenset({"recurrent"})


def test_what_has_no_tensor_of_the_step_in_it_has_no_origin(two_layers: nn.Sequential):
    assert trace_step(two_layers, lambda _: torch.ones(3) * 2) == Origin()


def test_tensors_inside_vmap_are_ignored(two_layers: nn.Sequential):
    tensors: list[torch.Tensor] = []
    names = {id(parameter): "layer" for parameter in two_layers.parameters()}
    inputs = torch.randn(5, 3)
    with ProvenanceTracker(names, [inputs], lambda _name, _args, _kwargs, outputs, _origin: tensors.append(outputs)):
        outputs = torch.vmap(two_layers)(inputs)
    assert outputs.shape == (5, 2)
    assert all(float(tensor.sum()) for tensor in tensors)


@pytest.mark.parametrize(
    "make_batch",
    [
        lambda tensor: SimpleNamespace(x=tensor, index=[tensor]),
        lambda tensor: SimpleNamespace(store=SimpleNamespace(mapping={"x": tensor}), sizes={"y": tensor}),
        lambda tensor: [SimpleNamespace(x=tensor), {"y": (tensor,)}],
        lambda tensor: namedtuple("Pair", "x y")(tensor, tensor),  # noqa: PYI024
    ],
    ids=["graph", "store of a graph", "list", "named tuple"],
)
def test_tensors_of_a_batch_are_found_in_objects(make_batch: Callable[[torch.Tensor], Any]):
    assert len(list(iter_tensors(make_batch(torch.ones(2)), BATCH_DEPTH))) == 2

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stormproof_train.activations import Elementwise
from stormproof_train.initialization.layer_inputs import trace_layer_inputs
from stormproof_train.models import CNN, MLP
from tests.support.cases import vary_one_factor


class Net(nn.Module):
    """Three layers, and a forward pass to be given."""

    def __init__(self, forward: Any, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.act = activation or nn.Tanh()  # before all, as a network may register it
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def _without_gradient(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = net.act(net.one(x))
    return net.three(net.act(net.two(h)))


PASSES = {  # the layers that an activation feeds
    "a chain": (lambda n, x: n.three(n.act(n.two(n.act(n.one(x))))), {"two", "three"}),
    "no activation between": (lambda n, x: n.three(n.act(n.two(n.one(x)))), {"three"}),
    "a norm between": (lambda n, x: n.three(n.norm(n.act(n.two(n.norm(n.one(x)))))), {"three"}),
    "a reshape, a mean and a clone": (
        lambda n, x: n.two(n.act(n.one(x)).view(-1, 2, 2).flatten(1).clone() / 3 + 1),
        {"two"},
    ),
    "two branches of one activation": (
        lambda n, x: n.two(h := n.act(n.one(x))) + n.three(h),
        {"two", "three"},
    ),
    "a residual branch": (lambda n, x: n.three(x + n.two(n.act(n.one(x)))), {"two"}),
    "a shortcut of the activation": (
        lambda n, x: n.three((h := n.act(n.one(x))) + n.two(h)),
        {"two", "three"},
    ),
    "an activation at the end": (lambda n, x: n.act(n.two(n.act(n.one(x)))), {"two"}),
    "a layer used twice": (lambda n, x: n.two(n.act(n.one(n.act(n.one(x))))), {"one", "two"}),
    "by the name of the argument": (lambda n, x: n.two(input=n.act(n.one(input=x))), {"two"}),
    "in place": (lambda n, x: n.two(n.act(n.one(x.mul_(2))).add_(1)), {"two"}),
    "checkpointed": (lambda n, x: n.two(checkpoint(n.act, n.one(x), use_reentrant=False)), {"two"}),
    "a part without gradient": (_without_gradient, {"two", "three"}),
}


ACTIVATIONS = {
    "smooth": nn.Tanh(),
    "nothing": nn.Identity(),
    "in place": nn.ReLU(inplace=True),
    "of neighbours": nn.Softmax(dim=1),
    "without a gradient": Elementwise(torch.zeros_like),
}


@pytest.mark.parametrize(
    ("name", "kind"), vary_one_factor(PASSES, ACTIVATIONS, "two branches of one activation", "in place")
)
def test_each_layer_knows_the_activation_it_gets(name: str, kind: str):
    (forward, fed), activation = PASSES[name], ACTIVATIONS[kind]
    network = Net(forward, activation)
    names = {layer: name for name, layer in network.named_children()}
    wiring = trace_layer_inputs(network, type(activation), (4,))
    assert {names[layer] for layer, sources in wiring.activations_by_layer.items() if sources} == fed
    assert wiring.input_shapes == {network.act: (4,)}


@pytest.mark.parametrize("arguments", [{}, {"norm": "batch"}, {"norm": "layer"}, {"dropout": 0.5}], ids=str)
def test_in_an_mlp_each_hidden_activation_feeds_the_next_layer(arguments: dict[str, Any]):
    network = MLP((1, 2, 3), 5, nn.ELU, depth=3, width=7, **arguments)
    layers = [module for module in network if isinstance(module, nn.Linear)]
    places = [module for module in network if isinstance(module, nn.ELU)]
    wiring = trace_layer_inputs(network, nn.ELU, (1, 2, 3))
    assert wiring.activations_by_layer == dict(zip(layers, [[], *([position] for position in places)], strict=True))
    assert wiring.input_shapes == dict.fromkeys(places, (7,))


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_in_a_cnn_each_place_knows_the_shape_of_its_images(norm: Any):
    network = CNN((1, 8, 8), 5, nn.ELU, depth=2, width=8, norm=norm)
    wiring = trace_layer_inputs(network, nn.ELU, (1, 8, 8))
    assert [len(sources) for sources in wiring.activations_by_layer.values()] == [0, 1, 1, 1, 1]
    assert list(wiring.input_shapes.values()) == [(8, 8, 8), (8, 8, 8), (16, 4, 4), (16, 4, 4)]


def test_the_layer_of_a_linear_model_gets_the_data():
    network = MLP((4,), 2, nn.ReLU, depth=0)
    assert trace_layer_inputs(network, nn.ReLU, (4,)).activations_by_layer == {network[1]: []}


def test_a_layer_that_no_pass_reaches_is_not_there():
    network = Net(lambda net, x: net.one(x))
    assert list(trace_layer_inputs(network, nn.Tanh, (4,)).activations_by_layer) == [network.one]


def test_an_activation_of_another_kind_does_not_count():
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    assert trace_layer_inputs(network, nn.ReLU, (4,)).activations_by_layer == {network[0]: [], network[2]: []}


def test_a_block_of_the_network_is_no_activation_even_where_the_activation_is_a_sequence():
    activation = nn.Sequential(nn.ReLU(), nn.Hardtanh())
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 4), activation), nn.Sequential(nn.Linear(4, 4)))
    wiring = trace_layer_inputs(network, nn.Sequential, (4,))
    assert list(wiring.activations_by_layer.values()) == [[], [activation]]
    assert list(wiring.input_shapes) == [activation]


@pytest.mark.parametrize("gradients", [True, False])
def test_looking_leaves_no_trace(gradients: bool):
    network = MLP((4,), 2, nn.ReLU, norm="batch", dropout=0.5)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    with torch.set_grad_enabled(gradients):
        assert [
            len(sources) for sources in trace_layer_inputs(network, nn.ReLU, (4,)).activations_by_layer.values()
        ] == [0, 1, 1]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_network_that_fails_keeps_no_hook():
    network = nn.Sequential(nn.Linear(5, 3))
    with pytest.raises(RuntimeError):
        trace_layer_inputs(network, nn.ReLU, (4,))
    assert not network[0]._forward_hooks

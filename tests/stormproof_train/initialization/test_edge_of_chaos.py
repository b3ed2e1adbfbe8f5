"""The edge of chaos: its equations, networks that stay on it, and what has none."""

import math

import pytest
import torch
from torch import nn

from stormproof_train.activations import Maxout
from stormproof_train.errors import UserError
from stormproof_train.initialization import edge_of_chaos
from stormproof_train.initialization.edge_of_chaos import Edge, find_edge
from stormproof_train.models import CNN, MLP, ResNet
from tests.support.cases import slow_except
from tests.support.hydra_configs import build_activation

EDGES = {  # weight variance and bias variance; None: not in the literature
    "tanh": (1.761, 0.05),
    "relu": (2.0, 0.0),
    "identity": (1.0, 0.0),
    "leaky_relu": (2 / (1 + 0.01**2), 0.0),
    "prelu": (2 / (1 + 0.25**2), 0.0),
    "elu": (None, 0.05),
    "selu": (None, 0.05),
    "softsign": (None, 0.05),
    "gelu": (None, 0.2),
    "mish": (None, 0.2),
    "silu": (None, 1.0),
    "hardswish": (None, 1.0),
}


def _edge(word: str) -> Edge:
    return find_edge(build_activation(word)())


@pytest.mark.parametrize("word", slow_except(EDGES, list(EDGES)[::3]))
def test_the_edge_is_where_the_literature_has_it(word: str):
    weight_variance, bias_variance = EDGES[word]
    edge = _edge(word)
    assert edge.bias_variance == bias_variance
    if weight_variance is not None:
        assert edge.weight_variance == pytest.approx(weight_variance, abs=5e-4)


@pytest.mark.parametrize("word", slow_except(EDGES, list(EDGES)[::3]))
def test_both_equations_hold_for_a_million_random_numbers(word: str):
    edge = _edge(word)
    activation = build_activation(word)().double().eval()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2**20, 1, generator=generator, dtype=torch.float64) * math.sqrt(edge.mean_square)
    z.requires_grad_()
    output = activation(z)
    (slopes,) = torch.autograd.grad(output.sum(), z)
    second_variance = edge.weight_variance * output.square().mean().item() + edge.bias_variance
    assert second_variance == pytest.approx(edge.mean_square, rel=0.01)
    assert edge.weight_variance * slopes.square().mean().item() == pytest.approx(1.0, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["tanh", "elu", "gelu", "silu", "relu"])
def test_signal_and_gradient_keep_their_size_through_a_deep_wide_network(word: str):
    activation = build_activation(word)
    edge = _edge(word)
    squares, factors = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        network = MLP((256,), 256, activation, width=256, depth=20)
        edge_of_chaos(network, activation, (256,))
        early = (
            nn.Sequential(*list(network)[:12])(torch.randn(32, 256)).detach().requires_grad_()
        )  # the output of the sixth layer
        late = nn.Sequential(*list(network)[12:])(early)
        (gradient,) = torch.autograd.grad(late, early, torch.randn_like(late))
        squares.append(late.square().mean().item() / edge.mean_square)
        factors.append(gradient.square().mean().item() ** (1 / 15))
    assert sum(squares) / 3 == pytest.approx(1.0, rel=0.35)
    assert sum(factors) / 3 == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("model", [CNN, ResNet])
def test_convolutions_get_it_too(model: type[nn.Module]):
    network = model((3, 16, 16), 10, nn.Tanh, width=32)
    edge_of_chaos(network, nn.Tanh, (3, 16, 16))
    last = network.head[1]
    assert last.weight.var().item() * last.in_features == pytest.approx(1.761, rel=0.15)
    assert last.bias.abs().max() > 0


@pytest.mark.parametrize("word", ["softplus", "logsigmoid", "threshold", "squared_relu"])
def test_what_has_no_stable_edge_is_one_sentence(word: str):
    with pytest.raises(
        UserError, match=r"has no stable edge of chaos with a bias variance of 0\.05, 0\.2, 1, 0. Choose auto or lsuv"
    ):
        _edge(word)


def test_relu_with_biases_has_none():
    with pytest.raises(UserError, match=r"ReLU\(\) has no stable edge of chaos with a bias variance of 0\.1\. Omit"):
        find_edge(nn.ReLU(), bias_variance=0.1)


@pytest.mark.parametrize("activation", [lambda: Maxout(2), lambda: nn.Softmax(1)], ids=["maxout", "softmax"])
def test_what_is_not_elementwise_is_refused(activation):
    network = MLP((10,), 3, activation)
    with pytest.raises(UserError, match=r"needs an elementwise activation, which .* is not. Choose auto or lsuv"):
        edge_of_chaos(network, activation, (10,))


def test_a_model_without_an_activation_is_refused():
    with pytest.raises(UserError, match="this model does not use one"):
        edge_of_chaos(nn.Linear(3, 3), None, (3,))
    with pytest.raises(UserError, match="a forward pass of this model does not call one"):
        edge_of_chaos(nn.Linear(3, 3), nn.Tanh, (3,))


def test_a_negative_variance_is_refused():
    with pytest.raises(ValueError, match=r"`bias_variance` must be finite and at least 0, got -0\.1"):
        edge_of_chaos(MLP((4,), 2, nn.Tanh), nn.Tanh, (4,), bias_variance=-0.1)

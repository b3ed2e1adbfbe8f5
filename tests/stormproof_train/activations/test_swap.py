from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configured import configured_activation
from torch import nn
from torchvision import models

from stormproof_train.activations import Activation, Elementwise, Maxout, activation_factory, swap_activations, swiglu
from stormproof_train.errors import UserError


def _kinds(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 9), ("mobilenet_v3_small", 33), ("vgg11", 10), ("vit_b_16", 12)]
)
def test_every_activation_of_a_torchvision_network_is_replaced(name: str, count: int):
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
        assert swap_activations(network, nn.Mish) == count
    assert _kinds(network, nn.Mish) == count
    gates = 9 if name == "mobilenet_v3_small" else 0  # of squeeze-and-excitation
    assert [_kinds(network, kind) for kind in (nn.ReLU, nn.Hardswish, nn.GELU, nn.Hardsigmoid)] == [0, 0, 0, gates]


def test_the_network_computes_with_the_new_ones():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    x = torch.randn(5, 3)
    expected = network[2][0](network[0](x).sigmoid()).sigmoid()
    assert swap_activations(network, nn.Sigmoid) == 2
    torch.testing.assert_close(network(x), expected)


def test_each_place_gets_a_module_of_its_own():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    swap_activations(network, nn.PReLU)
    assert len(list(network.parameters())) == 2 * 2 + 2


def test_a_module_in_several_places_stays_one():
    shared = nn.ReLU()
    network = nn.ModuleDict({"first": shared, "second": shared, "inner": nn.Sequential(shared)})
    assert swap_activations(network, nn.PReLU) == 1
    assert network["first"] is network["second"]
    assert network["first"] is network["inner"].get_submodule("0")
    assert isinstance(network["first"], nn.PReLU)


@pytest.mark.parametrize("before", [lambda: Elementwise(torch.sin), lambda: Maxout(2), nn.ELU, nn.Hardtanh, nn.GLU])
def test_ours_and_torchs_are_replaced(before: Callable[[], nn.Module]):
    network = nn.Sequential(nn.Linear(3, 4), before())
    assert swap_activations(network, nn.Mish) == 1
    assert isinstance(network[1], nn.Mish)


@pytest.mark.parametrize("kept", [lambda: nn.Softmax(1), lambda: nn.LogSoftmax(1), lambda: nn.MultiheadAttention(4, 2)])
def test_what_makes_probabilities_or_attends_stays(kept: Callable[[], nn.Module]):
    network = nn.Sequential(nn.ReLU(), kept())
    kind = type(network[1])
    assert swap_activations(network, nn.Mish) == 1
    assert type(network[1]) is kind


def test_torchs_transformer_computes_with_the_new_ones_in_evaluation_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=nn.ReLU())
    assert swap_activations(layer, nn.Tanh) == 1
    layer.eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, layer(x))
    assert not torch.allclose(fast, layer(x + 1))


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.linear(x))


@pytest.mark.parametrize("network", [_Functional(), nn.Linear(3, 3), nn.ReLU()], ids=["functions", "none", "itself"])
def test_a_network_without_an_activation_is_refused(network: nn.Module):
    with pytest.raises(UserError, match="has no module that is an activation; what its forward applies as a function"):
        swap_activations(network, nn.Mish)


@pytest.mark.parametrize(
    "activation",
    [
        lambda: Maxout(7),
        activation_factory(lambda: swiglu),
        configured_activation("crelu"),
    ],
    ids=["maxout", "swiglu", "crelu"],
)
def test_one_that_changes_the_width_is_refused_before_anything_is_replaced(activation: Activation):
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(UserError, match="features for 720720, and the layers of Sequential are made for as many as"):
        swap_activations(network, activation)
    assert isinstance(network[1], nn.ReLU)

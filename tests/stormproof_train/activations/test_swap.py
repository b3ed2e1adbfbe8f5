from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn
from torchvision import models

from stormproof_train.activations import Activation, Elementwise, Maxout, activation_factory, swap_activations, swiglu
from stormproof_train.errors import UserError
from tests.support.hydra_configs import build_activation


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


@pytest.mark.parametrize("before", [lambda: Elementwise(torch.sin), nn.ELU, nn.Hardtanh, lambda: nn.PReLU(4)])
def test_ours_and_torchs_are_replaced(before: Callable[[], nn.Module]):
    network = nn.Sequential(nn.Linear(3, 4), before())
    assert swap_activations(network, nn.Mish) == 1
    assert isinstance(network[1], nn.Mish)


@pytest.mark.parametrize("after", [activation_factory(lambda: swiglu), lambda: Maxout(2), nn.GLU])
@pytest.mark.parametrize("before", [activation_factory(lambda: swiglu), lambda: Maxout(2), nn.GLU])
def test_what_gives_half_the_features_is_replaced_by_what_does_so_too(before: Activation, after: Activation):
    network = nn.Sequential(nn.Linear(3, 4), before(), nn.Linear(2, 1))
    assert swap_activations(network, after) == 1
    assert network(torch.randn(5, 3)).shape == (5, 1)


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
    with pytest.raises(UserError, match=r"has no activation module\. Functions that its forward method"):
        swap_activations(network, nn.Mish)


OF_ANOTHER_WIDTH = {
    "maxout for relu": (nn.ReLU, lambda: Maxout(7), 102960, 720720),
    "swiglu for relu": (nn.ReLU, activation_factory(lambda: swiglu), 360360, 720720),
    "crelu for relu": (nn.ReLU, build_activation("crelu"), 1441440, 720720),
    "mish for glu": (nn.GLU, nn.Mish, 720720, 360360),
    "mish for maxout": (lambda: Maxout(2), nn.Mish, 720720, 360360),
    "glu for maxout": (lambda: Maxout(3), nn.GLU, 360360, 240240),
}


@pytest.mark.parametrize(("before", "after", "gives", "wanted"), OF_ANOTHER_WIDTH.values(), ids=OF_ANOTHER_WIDTH.keys())
def test_one_of_another_width_is_refused_before_anything_is_replaced(
    before: Activation, after: Activation, gives: int, wanted: int
):
    network = nn.Sequential(nn.Linear(3, 12), nn.Sequential(before()))
    old_activation = network[1][0]
    with pytest.raises(UserError, match=f"returns {gives} features for 720720, but 1.0 .* returns {wanted}"):
        swap_activations(network, after)
    assert network[1][0] is old_activation
    assert old_activation.training


def test_a_new_one_is_in_the_mode_of_the_one_it_replaces():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    network[3].eval()
    swap_activations(network, nn.RReLU)
    assert [network[position].training for position in (1, 3)] == [True, False]


def test_a_new_one_works_with_the_numbers_of_the_layer_before_it():
    network = nn.Sequential(nn.ReLU(), nn.Linear(3, 3).double(), nn.ReLU(), nn.Linear(3, 3, device="meta"), nn.ReLU())
    swap_activations(network, nn.PReLU)
    kinds = [(network[position].weight.dtype, network[position].weight.device.type) for position in (0, 2, 4)]
    assert kinds == [(torch.float64, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")]
    assert network[:3](torch.randn(5, 3, dtype=torch.float64)).dtype is torch.float64

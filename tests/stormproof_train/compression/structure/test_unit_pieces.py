import pytest
import torch
from torch import nn

from stormproof_train.activations import Maxout
from stormproof_train.compression.structure.grouped_activations import find_grouped_activations
from stormproof_train.compression.structure.pieces import find_pieces
from stormproof_train.compression.structure.split_layers import (
    IdentityPlaceholder,
    SplitLayer,
    join_pieces,
    split_layers,
)
from tests.stormproof_train.compression.small_networks import ACTIVATIONS, MODELS, make_samples, randomize_weights
from tests.support.cases import vary_one_factor
from tests.support.hydra_configs import build_activation, list_activations

GATHERING = ("maxout", "maxout_3", "glu", "reglu", "swiglu", "bilinear", "own")
LIKE = torch.zeros(1)


@pytest.mark.parametrize("pieces", [2, 3, 16])
def test_the_pieces_of_a_maxout_unit_are_neighbours(pieces: int):
    expected = torch.arange(5 * pieces).view(5, pieces).T
    assert torch.equal(find_pieces(Maxout(pieces), 5 * pieces, LIKE), expected)


@pytest.mark.parametrize("name", ["glu", "reglu", "swiglu", "bilinear"])
def test_the_pieces_of_a_gated_unit_are_one_of_either_half(name: str):
    assert find_pieces(ACTIVATIONS[name](), 600, LIKE).tolist() == [list(range(300)), list(range(300, 600))]


def test_the_pieces_of_ones_own_activation_are_found_where_they_are():
    assert find_pieces(ACTIVATIONS["own"](), 6, LIKE).tolist() == [[0, 1, 2], [5, 4, 3]]


@pytest.mark.parametrize(
    ("activation", "features"),
    [
        (nn.Softmax(dim=1), 4),  # shared by all units
        (ACTIVATIONS["crelu"](), 4),  # more units than features
        (ACTIVATIONS["glu"](), 5),  # not taken
        (nn.AvgPool1d(3, stride=1), 5),  # shared by neighbours
    ],
)
def test_there_are_none_where_units_share_features_or_have_none(activation: nn.Module, features: int):
    assert find_pieces(activation, features, LIKE) is None


@pytest.mark.slow
def test_all_activations_that_ship_and_give_fewer_features_have_pieces():
    for word in list_activations():
        activation = build_activation(word)()
        units = activation.eval()(torch.zeros(1, 12)).shape[1]
        assert units >= 12 or len(find_pieces(activation, 12, LIKE)) == 12 // units, word


@pytest.mark.parametrize(
    ("model", "activation"),
    sorted(
        {
            *vary_one_factor(MODELS, GATHERING, "cnn_batch", "maxout"),
            ("cnn_group", "maxout_3"),
            ("resnet_group", "maxout_3"),
        }
    ),
)
def test_a_network_put_in_pieces_and_joined_is_what_it_was(model: str, activation: str):
    network = randomize_weights(MODELS[model](ACTIVATIONS[activation])).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = network(make_samples())
    gatherings = find_grouped_activations(network, make_samples())
    assert gatherings
    for gathering in gatherings:
        if (model, activation) in {("cnn_group", "maxout_3"), ("resnet_group", "maxout_3")}:
            with pytest.raises(ValueError, match="are in different groups"):  # of 8, and 3 features make a unit
                split_layers(network, gathering, make_samples())
        else:
            split_layers(network, gathering, make_samples())
            assert any(isinstance(module, SplitLayer) for module in network.modules())
    join_pieces(network)
    assert not any(isinstance(module, SplitLayer | IdentityPlaceholder) for module in network.modules())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(network(make_samples()), expected)


def test_an_activation_whose_features_go_elsewhere_too_stays():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.gate, self.out = nn.Linear(4, 6), nn.GLU(dim=1), nn.Linear(9, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = self.wide(x)
            return self.out(torch.cat((wide, self.gate(wide)), dim=1))

    network, inputs = Twice(), torch.randn(2, 4)
    modules = list(network.modules())
    (gathering,) = find_grouped_activations(network, inputs)
    with pytest.raises(ValueError, match="other modules use its inputs too"):
        split_layers(network, gathering, inputs)
    assert list(network.modules()) == modules


def test_an_activation_that_is_made_for_one_width_stays():
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values, gates = x.chunk(2, dim=1)
            return self.weight * values * gates

    network = nn.Sequential(nn.Linear(4, 6), Weighed(), nn.Linear(3, 2))
    (gathering,) = find_grouped_activations(network, torch.randn(2, 4))
    with pytest.raises(ValueError, match="has a fixed number of features"):
        gathering.find_pieces(LIKE)

import torch
from torch import nn

from stormproof_train.compression.structure.rebuild import apply_structure


def test_a_network_is_given_back_itself():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert apply_structure(network, {"0": [3, 4], "1": [3], "2": [2, 3]}, {"0": 2}) is network
    assert [name for name, _ in network.named_parameters()] == [
        "0.0.weight",
        "0.1.weight",
        "0.1.bias",
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
    ]
    assert network(torch.zeros(5, 4)).shape == (5, 2)


def test_without_shapes_and_ranks_it_stays_as_it_is():
    network = nn.Sequential(nn.Linear(4, 8))
    before = network[0]
    assert apply_structure(network)[0] is before

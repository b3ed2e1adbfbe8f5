import torch
from torch import nn

from stormproof.resume import frozen_modules


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Linear(2, 1)))


def test_what_was_frozen_is_frozen_in_another_and_nothing_else():
    one, other = network(), network()
    one[0].requires_grad_(False)
    one[2].eval()
    one[1].track_running_stats = False
    other[2].requires_grad_(False)
    other[1].eval()
    other[0].bias.requires_grad_(False)
    frozen_modules.restore(other, frozen_modules.capture(one))
    assert frozen_modules.capture(other) == frozen_modules.capture(one)
    assert [parameter.requires_grad for parameter in other.parameters()] == [False, False, True, True, True, True]
    assert [each.training for each in other] == [True, True, False]
    assert not other[1].track_running_stats


def test_a_network_that_is_trained_whole_is_three_empty_lists():
    assert list(frozen_modules.capture(network()).values()) == [[], [], []]


def test_whole_numbers_that_have_no_gradient_stay_without():
    module = nn.Module()
    module.count = nn.Parameter(torch.tensor([1]), requires_grad=False)
    frozen_modules.restore(module, frozen_modules.capture(module))
    assert not module.count.requires_grad

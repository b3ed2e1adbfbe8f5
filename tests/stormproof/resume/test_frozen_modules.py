import torch
from torch import nn

from stormproof.resume import frozen_modules


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Linear(2, 1)))


def test_what_was_frozen_is_frozen_in_another_and_nothing_else():
    frozen, restored = make_network(), make_network()
    frozen[0].requires_grad_(False)
    frozen[2].eval()
    frozen[1].track_running_stats = False
    restored[2].requires_grad_(False)
    restored[1].eval()
    restored[0].bias.requires_grad_(False)
    frozen_modules.restore(restored, frozen_modules.capture(frozen))
    assert frozen_modules.capture(restored) == frozen_modules.capture(frozen)
    assert [parameter.requires_grad for parameter in restored.parameters()] == [False, False, True, True, True, True]
    assert [module.training for module in restored] == [True, True, False]
    assert not restored[1].track_running_stats


def test_a_network_that_is_trained_whole_is_three_empty_lists():
    assert list(frozen_modules.capture(make_network()).values()) == [[], [], []]


def test_whole_numbers_that_have_no_gradient_stay_without():
    module = nn.Module()
    module.count = nn.Parameter(torch.tensor([1]), requires_grad=False)
    frozen_modules.restore(module, frozen_modules.capture(module))
    assert not module.count.requires_grad

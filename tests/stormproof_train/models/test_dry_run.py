import pytest
import torch
from torch import nn

from stormproof_train.models.dry_run import dry_run


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_and_the_generator_are_as_before(fails: bool):
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()).eval(), nn.BatchNorm1d(3))
    modes = [module.training for module in network.modules()]
    generator = torch.get_rng_state()
    try:
        with dry_run(network):
            assert not any(module.training for module in network.modules())
            torch.rand(3)
            assert not fails
    except AssertionError:
        assert fails
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)

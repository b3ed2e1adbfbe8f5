"""He's, Glorot's and orthogonal weights: their variances, and what they leave."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stormproof_train.initialization import kaiming, orthogonal, xavier
from stormproof_train.models import MLP

LAYERS = {
    "linear": (lambda: nn.Linear(600, 400), 600, 400),
    "convolution": (lambda: nn.Conv2d(60, 80, 3), 540, 720),
    "grouped": (lambda: nn.Conv1d(64, 128, 5, groups=4), 80, 160),
}


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(("make", "fan_in", "fan_out"), LAYERS.values(), ids=LAYERS)
def test_the_variance_is_two_over_the_fan(make: Callable[[], Any], fan_in: int, fan_out: int, distribution: Any):
    layer = make()
    kaiming(layer, distribution=distribution)
    assert layer.weight.var().item() * fan_in == pytest.approx(2.0, rel=0.03)
    kaiming(layer, mode="fan_out", distribution=distribution)
    assert layer.weight.var().item() * fan_out == pytest.approx(2.0, rel=0.03)
    xavier(layer, gain=1.5, distribution=distribution)
    assert layer.weight.var().item() * (fan_in + fan_out) / 2 == pytest.approx(1.5**2, rel=0.03)
    assert layer.bias.eq(0).all()


def test_a_uniform_distribution_has_an_end():
    layer = nn.Linear(600, 400)
    xavier(layer)
    assert layer.weight.abs().max() <= (6 / 1000) ** 0.5
    kaiming(layer, distribution="normal")
    assert layer.weight.abs().max() > 3 * (2 / 600) ** 0.5


def test_orthogonal_rows_are_orthonormal_times_the_gain_of_what_feeds_them():
    network = MLP((40,), 10, nn.ReLU, widths=[40, 30])
    orthogonal(network, nn.ReLU, (40,))
    for layer, gain in zip(list(network)[1::2], (1.0, 2.0, 2.0), strict=True):
        torch.testing.assert_close(
            layer.weight @ layer.weight.T, gain * torch.eye(len(layer.weight)), atol=1e-4, rtol=0
        )


def test_orthogonal_columns_where_there_are_more_rows_keep_the_mean_square():
    layer = nn.Linear(40, 100)
    orthogonal(layer, None, (40,))
    torch.testing.assert_close(layer.weight.T @ layer.weight, 2.5 * torch.eye(40), atol=1e-4, rtol=0)
    x = torch.randn(1000, 40)
    assert layer(x).square().mean().item() == pytest.approx(x.square().mean().item(), rel=1e-4)


def test_a_convolution_counts_as_a_matrix():
    layer = nn.Conv2d(8, 16, 3)
    orthogonal(layer, None, (8, 5, 5), gain=3.0)
    matrix = layer.weight.flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, 9 * torch.eye(16), atol=1e-4, rtol=0)


def test_a_linear_network_of_any_depth_keeps_its_input():
    network = nn.Sequential(*(nn.Linear(32, 32) for _ in range(100)))
    orthogonal(network, None, (32,))
    x = torch.randn(5, 32)
    torch.testing.assert_close(network(x).norm(dim=1), x.norm(dim=1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("initialize", [kaiming, xavier, lambda network: orthogonal(network, None, (6,))])
def test_frozen_and_computed_weights_and_other_layers_stay(initialize: Callable[[nn.Module], None]):
    network = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    )
    network[0].requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialize(network)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"2.weight", "2.bias"}


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan")])
def test_a_gain_that_is_none_is_refused(gain: float):
    with pytest.raises(ValueError, match=r"`gain` must be .*above 0"):
        xavier(nn.Linear(3, 3), gain=gain)
    with pytest.raises(ValueError, match=r"`gain` must be .*above 0"):
        orthogonal(nn.Linear(3, 3), None, (3,), gain=gain)

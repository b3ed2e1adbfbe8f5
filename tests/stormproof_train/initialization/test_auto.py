import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stormproof_train.activations import activation_factory
from stormproof_train.errors import UserError
from stormproof_train.initialization import auto, torch_default
from stormproof_train.models import CNN, MLP
from tests.support.cases import slow_except

FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": lambda: nn.ELU(alpha=0.5),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
    "tanh as a function": activation_factory(lambda: torch.tanh),
    "prelu": nn.PReLU,
    "softmax": lambda: nn.Softmax(dim=1),
}


def _signals(network: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """What each layer gives, in turn."""
    outputs: list[torch.Tensor] = []
    layers = [
        module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    for layer in layers:
        layer.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    network(inputs)
    assert len(outputs) == len(layers)
    return outputs


def _scales(network: nn.Module) -> list[float]:
    """The mean square of each layer's weights times its fan-in: g squared."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    return [weight.square().mean().item() * weight[0].numel() for weight in weights]


# At width N the mean square of one network's signal wanders, for ReLU by a factor of about 1 +- (5 / N)^(1/2) a layer.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "elu", "selu", "tanh as a function", "prelu"])
def test_the_signal_keeps_its_size_through_ten_wide_layers(name: str):
    squares = torch.zeros(10)
    for seed in range(6):
        torch.manual_seed(seed)
        network = MLP((1024,), 10, FUNCTIONS[name], width=1024, depth=10)
        auto(network, FUNCTIONS[name], (1024,))
        squares += torch.stack([signal.square().mean() for signal in _signals(network, torch.randn(64, 1024))[:-1]]) / 6
    assert squares.tolist() == pytest.approx([1.0] * 10, rel=0.15)


def test_torchs_own_weights_let_the_signal_of_relu_fade():
    torch.manual_seed(0)
    network = MLP((1024,), 10, nn.ReLU, width=1024, depth=10)
    torch_default()
    squares = [signal.square().mean().item() for signal in _signals(network, torch.randn(64, 1024))[:-1]]
    assert squares[1] / squares[0] == pytest.approx(1 / 6, rel=0.1)
    assert squares[-1] < 2e-3  # what is left are the biases


SHRINK = {  # g E[phi'(z)^2]^(1/2)
    "sigmoid": 0.391, "tanh": 1.085, "relu": 1.000, "identity": 1.000, "elu": 1.018, "selu": 1.035, "gelu": 1.035,
    "silu": 1.033,
}  # fmt: skip


@pytest.mark.parametrize(("name", "factor"), slow_except(SHRINK.items(), list(SHRINK.items())[:1]))
def test_the_gradient_changes_by_its_factor_in_each_layer(name: str, factor: float):
    logs = []
    for seed in range(4):
        torch.manual_seed(seed)
        kind = nn.ELU if name == "elu" else FUNCTIONS[name]
        network = MLP((1024,), 10, kind, width=1024, depth=8)
        auto(network, kind, (1024,))
        signals = _signals(network, torch.randn(32, 1024))[:-1]
        last = torch.randn_like(signals[-1])
        gradients = [gradient.norm() for gradient in torch.autograd.grad(signals[-1], signals[:-1], last)]
        logs.append((gradients[0] / last.norm()).log().item() / len(gradients))
    assert math.exp(sum(logs) / len(logs)) == pytest.approx(factor, rel=0.03)


CONVOLUTIONS = {
    "one dimension": (nn.Conv1d, (64, 64), {"padding_mode": "circular", "padding": 2, "kernel_size": 5}),
    "two dimensions": (nn.Conv2d, (64, 16, 16), {"padding_mode": "circular", "padding": 1, "kernel_size": 3}),
    "two dimensions, groups": (nn.Conv2d, (64, 16, 16), {"groups": 4, "kernel_size": 1}),
    "three dimensions": (nn.Conv3d, (64, 4, 4, 4), {"padding_mode": "circular", "padding": 1, "kernel_size": 3}),
}


@pytest.mark.parametrize(("kind", "shape", "arguments"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_a_convolution_counts_the_inputs_of_one_output(kind: Any, shape: tuple[int, ...], arguments: dict[str, Any]):
    torch.manual_seed(0)
    widths = [64, 128, 128, 128]
    layers = [kind(i, o, **arguments) for i, o in itertools.pairwise(widths)]
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.Tanh())
    auto(network, nn.Tanh, shape)
    squares = [signal.square().mean().item() for signal in _signals(network, torch.randn(8, *shape))]
    assert squares == pytest.approx([1.0, 1.0, 1.0], rel=0.2)
    assert _scales(network)[1:] == pytest.approx([1.593**2] * 2, rel=0.1)


@pytest.mark.parametrize("arguments", [{}, {"norm": "batch"}, {"norm": "layer"}, {"dropout": 0.3}], ids=str)
def test_the_gain_of_a_layer_is_that_of_the_activation_before_it(arguments: dict[str, Any]):
    torch.manual_seed(0)
    network = MLP((300,), 300, nn.ReLU, width=300, depth=3, **arguments)
    auto(network, nn.ReLU, (300,))
    assert _scales(network) == pytest.approx([1.0, 2.0, 2.0, 2.0], rel=0.03)


def test_a_cnns_layers_get_theirs_too():
    torch.manual_seed(0)
    network = CNN((3, 16, 16), 10, nn.ReLU, width=64, depth=2)
    auto(network, nn.ReLU, (3, 16, 16))
    assert _scales(network) == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0], rel=0.1)


def test_each_width_of_softmax_has_a_gain_of_its_own():
    torch.manual_seed(0)
    network = MLP((64,), 10, lambda: nn.Softmax(dim=1), widths=[100, 1000, 100])
    auto(network, lambda: nn.Softmax(dim=1), (64,))
    assert _scales(network)[1:3] == pytest.approx([100**2 / math.e, 1000**2 / math.e], rel=0.1)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_biases_are_zero_and_norms_stay_as_they_are(norm: Any):
    network = MLP((20,), 3, nn.ReLU, norm=norm)
    auto(network, nn.ReLU, (20,))
    assert all((parameter == 0).all() for name, parameter in network.named_parameters() if name.endswith("bias"))
    assert all((module.weight == 1).all() for module in network if isinstance(module, nn.BatchNorm1d))


def test_a_layer_without_a_bias_is_one_too():
    network = nn.Sequential(nn.Linear(300, 300, bias=False), nn.ReLU(), nn.Linear(300, 300, bias=False), nn.ReLU())
    auto(network, nn.ReLU, (300,))
    assert _scales(network) == pytest.approx([1.0, 2.0], rel=0.05)


def _draw_weights(seed: int, kind: Callable[[], nn.Module] = nn.ReLU) -> list[torch.Tensor]:
    network = MLP((20,), 3, kind)
    torch.manual_seed(seed)
    auto(network, kind, (20,))
    return [*network.parameters(), torch.rand(3)]


@pytest.mark.parametrize("kind", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_the_seed_fixes_the_weights_and_what_is_drawn_behind_them(kind: Callable[[], nn.Module]):
    assert all(
        torch.equal(weight, repeated_weight)
        for weight, repeated_weight in zip(_draw_weights(1, kind), _draw_weights(1, kind), strict=True)
    )
    assert not torch.equal(_draw_weights(1, kind)[0], _draw_weights(2, kind)[0])


def test_only_the_weights_are_drawn_from_the_processs_generator():
    after_softmax = _draw_weights(1, lambda: nn.Softmax(dim=1))[-1]
    network = MLP((20,), 3, nn.ReLU)
    torch.manual_seed(1)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    assert torch.equal(after_softmax, torch.rand(3))


class _Drawing(nn.Module):
    """An activation that draws its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.rand(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x


def test_an_activations_own_parameters_are_measured_as_they_are():
    torch.manual_seed(0)
    network = MLP((300,), 300, _Drawing, width=300, depth=3)
    slopes = [layer.slope.item() for layer in network if isinstance(layer, _Drawing)]
    auto(network, _Drawing, (300,))
    assert _scales(network)[1:] == pytest.approx([slope**-2 for slope in slopes], rel=0.05)
    assert [layer.slope.item() for layer in network if isinstance(layer, _Drawing)] == slopes


def _untouched_weights(network: nn.Module, kind: Callable[[], nn.Module] | None) -> set[str]:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    auto(network, kind, (6,))
    return {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}


def test_a_network_that_takes_no_activation_is_left_as_it_is():
    network = MLP((6,), 3, nn.ReLU)
    assert _untouched_weights(network, None) == set(network.state_dict())


def test_frozen_and_computed_weights_are_left_as_they_are():
    network = MLP((6,), 3, nn.ReLU, depth=3)
    network[1].requires_grad_(False)
    network[3].bias.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(network[5])
    left = _untouched_weights(network, nn.ReLU)
    assert left == {"1.weight", "1.bias", "3.bias", *(name for name in network.state_dict() if name.startswith("5."))}


def test_an_activation_without_a_gain_is_refused_before_a_weight_changes():
    kind = activation_factory(lambda: torch.zeros_like)
    network = MLP((6,), 3, kind)
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(UserError, match=r"is 0\.0"):
        auto(network, kind, (6,))
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))

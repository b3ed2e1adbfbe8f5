"""Layer-sequential unit variance: every layer, on the batch it was given."""

from typing import Any

import pytest
import torch
from torch import nn

from stormproof_train.activations import activation_factory
from stormproof_train.errors import UserError
from stormproof_train.initialization import lsuv
from stormproof_train.initialization.layers import Layer
from stormproof_train.models import CNN, MLP, ResNet, Transformer
from tests.support.hydra_configs import REPRESENTATIVES, build_activation

MODELS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "mlp": (MLP, (1, 8, 8), {"width": 30, "depth": 4}),
    "cnn": (CNN, (3, 8, 8), {"width": 8}),
    "resnet": (ResNet, (3, 8, 8), {"width": 6}),
    "transformer": (Transformer, (1, 12), {"width": 12, "heads": 2, "depth": 2}),
}


def _deviations(network: nn.Module, inputs: torch.Tensor) -> list[float]:
    deviations: list[float] = []
    for module in network.modules():
        if isinstance(module, Layer):
            module.register_forward_hook(lambda _module, _args, output: deviations.append(output.std().item()))
    with torch.no_grad():
        network.eval()(inputs)
    return deviations


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("word", REPRESENTATIVES)
def test_the_outputs_of_every_layer_have_variance_one(word: str, name: str):
    model, shape, arguments = MODELS[name]
    network = model(shape, 10, build_activation(word), **arguments)
    inputs = 3 * torch.randn(32, *shape) + 1
    lsuv(network, inputs)
    deviations = _deviations(network, inputs)
    assert len(deviations) >= 5
    assert deviations == pytest.approx([1.0] * len(deviations), rel=2e-3)


def test_a_layer_that_is_called_twice_is_scaled_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x).tanh())

    network, inputs = Twice(), torch.randn(64, 8)
    lsuv(network, inputs)
    assert network.layer(inputs).std().item() == pytest.approx(1.0, rel=1e-4)


def test_frozen_and_computed_weights_stay():
    network = nn.Sequential(
        nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    )
    network[0].requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lsuv(network, torch.randn(64, 6))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"2.weight", "2.bias"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_told_as_such(value: float):
    inputs = torch.randn(64, 6)
    inputs[3, 2] = value
    with pytest.raises(UserError, match="the first training batch, which contains inputs that are not finite"):
        lsuv(nn.Sequential(nn.Linear(6, 6)), inputs)


def test_the_mode_the_hooks_and_the_generator_stay_as_they_are():
    network = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    lsuv(network, torch.randn(64, 6))
    assert network.training
    assert network[1].running_mean.eq(0).all()
    assert not network[0]._forward_hooks


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (
            nn.Sequential(nn.Linear(6, 6), activation_factory(lambda: torch.zeros_like)(), nn.Linear(6, 6)),
            "outputs of 2 on the first batch, which is 0",
        ),
        (
            nn.Sequential(nn.Linear(6, 6), activation_factory(lambda: torch.log)(), nn.Linear(6, 6)),
            "on the first batch, which is nan",
        ),
    ],
    ids=["dead", "not a number"],
)
def test_a_layer_that_gives_nothing_is_one_sentence(network: nn.Module, told: str):
    with pytest.raises(UserError, match=told):
        lsuv(network, torch.randn(64, 6))

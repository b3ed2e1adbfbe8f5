"""Each activation that ships, against its formula written anew in NumPy, and its gradient against differences."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

from stormproof_train.activations import Activation, infer_feature_counts
from tests.support.forked_command import ROOT
from tests.support.hydra_configs import build_activation, list_activations

Array = np.ndarray


def _gated(gate: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: x[:, : x.shape[1] // 2] * gate(x[:, x.shape[1] // 2 :])


def _elu(x: Array, alpha: float = 1.0, scale: float = 1.0) -> Array:
    return scale * np.where(x > 0, x, alpha * np.expm1(x))


FORMULAS: dict[str, Callable[[Array], Array]] = {
    "bilinear": _gated(lambda v: v),
    "celu": _elu,  # with alpha = 1 they are one
    "crelu": lambda x: np.hstack([np.maximum(x, 0), np.maximum(-x, 0)]),
    "elu": _elu,
    "geglu": _gated(lambda v: v * stats.norm.cdf(v)),
    "gelu": lambda x: x * stats.norm.cdf(x),
    "glu": _gated(special.expit),
    "hardshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "hardsigmoid": lambda x: np.clip(x / 6 + 1 / 2, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 1 / 2, 0, 1),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "identity": lambda x: x,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "logsigmoid": lambda x: np.log(special.expit(x)),
    "maxout": lambda x: np.maximum(x[:, ::2], x[:, 1::2]),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "prelu": lambda x: np.where(x > 0, x, 0.25 * x),
    "reglu": _gated(lambda v: np.maximum(v, 0)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "rrelu": lambda x: np.where(x > 0, x, (1 / 8 + 1 / 3) / 2 * x),  # in evaluation
    "selu": lambda x: _elu(x, alpha=1.6732632423543772, scale=1.0507009873554805),
    "sigmoid": special.expit,
    "silu": lambda x: x * special.expit(x),
    "sine": np.sin,
    "snake": lambda x: x + np.sin(x) ** 2,
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True),
    "softmin": lambda x: np.exp(-x) / np.exp(-x).sum(axis=1, keepdims=True),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "swiglu": _gated(lambda v: v * special.expit(v)),
    "tanh": np.tanh,
    "tanhshrink": lambda x: x - np.tanh(x),
    "threshold": lambda x: np.where(x > 0.5, x, 0),
}


CHANGING = {  # features to take and features given, for 8 and for 33 units
    "maxout": [(16, 8), (66, 33)],
    "glu": [(16, 8), (66, 33)],
    "reglu": [(16, 8), (66, 33)],
    "geglu": [(16, 8), (66, 33)],
    "swiglu": [(16, 8), (66, 33)],
    "bilinear": [(16, 8), (66, 33)],
    "crelu": [(4, 8), (17, 34)],
}


def test_there_are_at_least_thirty_and_every_formula_is_of_one():
    assert len(list_activations()) >= 30
    assert set(FORMULAS) <= set(list_activations())


def _inputs(*shape: int) -> torch.Tensor:
    """From -8 to 8, and none nearer than 0.01 to a place where a formula has a kink."""
    x = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 16 - 8
    return torch.where((x * 2 - (x * 2).round()).abs() < 0.02, x + 0.03, x)


@pytest.mark.parametrize("word", list_activations())
def test_an_activation_is_its_formula_with_the_right_gradient_and_width_and_is_finite_everywhere(word: str):
    assert word in FORMULAS, f"Add the formula of `{word}` in NumPy to FORMULAS in {Path(__file__).relative_to(ROOT)}."
    make = build_activation(word)
    activation = make().double().eval()
    _assert_formula(activation, FORMULAS[word])
    _assert_channels_are_features(activation)
    assert torch.autograd.gradcheck(activation, _inputs(4, 6).requires_grad_())
    _assert_finite_far_out(make().eval())
    _assert_widths(make, *CHANGING.get(word, [(8, 8), (33, 33)]))


def _assert_formula(activation: nn.Module, formula: Callable[[Array], Array]) -> None:
    x = _inputs(50, 12)
    np.testing.assert_allclose(activation(x).detach().numpy(), formula(x.numpy()), rtol=1e-6, atol=1e-12)


def _assert_channels_are_features(activation: nn.Module) -> None:
    images = _inputs(3, 12, 4, 5)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 12)
    expected = activation(pixels).unflatten(0, (3, 4, 5)).permute(0, 3, 1, 2)
    torch.testing.assert_close(activation(images), expected)


def _assert_finite_far_out(activation: nn.Module) -> None:
    x = torch.tensor([[-1e4, -80.0, 0.0, 80.0, 1e4, -1e4]]).requires_grad_()
    output = activation(x)
    output.sum().backward()
    assert x.grad is not None
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


def _assert_widths(make: Activation, for_8: tuple[int, int], for_33: tuple[int, int]) -> None:
    for positions in range(4):
        assert infer_feature_counts(make, 8, positions) == for_8
        assert infer_feature_counts(make, 33, positions) == for_33


def test_the_frequency_of_snake_can_be_chosen():
    activation = build_activation("snake", "++activation.frequency=3.0")().double()
    x = _inputs(5, 4)
    torch.testing.assert_close(activation(x), x + (3 * x).sin() ** 2 / 3)


def test_a_unit_of_maxout_is_the_largest_of_its_own_neighbours():
    maxout = build_activation("maxout", "++activation.pieces=3")()
    assert maxout(torch.tensor([[1.0, 2.0, 3.0, 6.0, 5.0, 4.0]])).tolist() == [[3.0, 6.0]]
    assert str(maxout).splitlines()[0] == "Maxout("


def test_maxout_with_two_pieces_is_the_absolute_value():
    network = nn.Sequential(nn.Linear(1, 2, bias=False), build_activation("maxout")())
    network[0].weight.data = torch.tensor([[1.0], [-1.0]])
    x = torch.linspace(-5, 5, 101).unsqueeze(1)
    assert torch.equal(network(x), x.abs())


def test_maxout_with_two_pieces_learns_the_absolute_value():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 2), build_activation("maxout")()).double()
    x = torch.linspace(-1, 1, 64, dtype=torch.float64).unsqueeze(1)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (network(x) - x.abs()).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (network(x) - x.abs()).abs().max() < 1e-4

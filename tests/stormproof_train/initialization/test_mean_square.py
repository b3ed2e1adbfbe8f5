import functools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from stormproof_train.activations import Elementwise
from stormproof_train.errors import UserError
from stormproof_train.initialization.mean_square import is_elementwise, mean_square


def _below(x: float) -> float:
    """P(z < x)."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _elu(alpha: float) -> float:
    return 0.5 + alpha**2 * (math.exp(2) * _below(-2) - 2 * math.exp(0.5) * _below(-1) + 0.5)


class Maxout(nn.Module):
    """The greatest of each k neighbours (Goodfellow et al. 2013)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (-1, self.pieces)).amax(2)


class Standardized(nn.Module):
    """Mean 0 and variance 1 over what a function picks."""

    def __init__(self, dims: tuple[int, ...] | None) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(self.dims, keepdim=True)) / x.std(self.dims, keepdim=True)


GAINS = {  # E[phi(z)^2]^(-1/2), to three decimals
    nn.Sigmoid: 1.846, nn.Tanh: 1.593, nn.ReLU: 1.414, nn.ELU: 1.245, nn.SELU: 1.000, nn.GELU: 1.534, nn.SiLU: 1.677,
    nn.Identity: 1.000, nn.Mish: 1.487, nn.Softsign: 2.338, nn.Hardswish: 1.737, nn.Softplus: 1.042,
}  # fmt: skip


@pytest.mark.parametrize(("activation", "gain"), GAINS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_the_gains_of_torchs_activations_are_those_of_the_literature(activation: type[nn.Module], gain: float):
    assert mean_square(activation()) ** -0.5 == pytest.approx(gain, abs=5.5e-4)


EXACT = {
    "nothing done": (nn.Identity(), 1.0),
    "a kink": (nn.ReLU(), 0.5),
    "a kink in place": (nn.ReLU(inplace=True), 0.5),
    "a slope": (nn.LeakyReLU(0.2), (1 + 0.2**2) / 2),
    "a slope that is learned": (nn.PReLU(init=0.4), (1 + 0.4**2) / 2),
    "an alpha": (nn.ELU(alpha=0.5), _elu(0.5)),
    "no alpha": (nn.ELU(), _elu(1.0)),
    "a function": (Elementwise(torch.exp), math.exp(2)),
    "a function with an argument": (Elementwise(functools.partial(nn.functional.elu, alpha=2.0)), _elu(2.0)),
    "a kink off the middle": (
        Elementwise(lambda z: (z - 1).relu()),
        2 * _below(-1) - math.exp(-0.5) / math.sqrt(2 * math.pi),
    ),
    "a square": (Elementwise(lambda z: z.relu().square()), 1.5),
    "a number": (Elementwise(torch.ones_like), 1.0),
    "float32 inside": (Elementwise(lambda z: z.float().relu()), 0.5),
}


@pytest.mark.parametrize(("activation", "expected"), EXACT.values(), ids=EXACT.keys())
def test_an_elementwise_activation_is_measured_to_six_decimals(activation: nn.Module, expected: float):
    assert mean_square(activation, (3, 5)) == pytest.approx(expected, rel=1e-6)
    assert is_elementwise(activation.double(), (3, 5))


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_a_jump_is_measured_to_four_decimals(threshold: float):
    step = Elementwise(lambda z: (z > threshold).double())
    assert mean_square(step) == pytest.approx(_below(-threshold), abs=1e-4)


def _slopes(*slopes: float) -> nn.PReLU:
    activation = nn.PReLU(len(slopes))
    activation.weight.data = torch.tensor(slopes)
    return activation


APART = {
    "softmax of two": (nn.Softmax(dim=1), (2,), None),  # below
    "softmax of many": (nn.Softmax(dim=1), (1000,), math.e / 1000**2),  # as 1000 -> infinity
    "softmax over channels": (nn.Softmax(dim=1), (1000, 2, 2), math.e / 1000**2),
    "the greatest of two": (Maxout(2), (64,), 1.0),
    "the greatest of three": (Maxout(3), (63,), 0.885**-2),
    "the greatest of four": (Maxout(4), (64,), 0.803**-2),
    "the greatest of five": (Maxout(5), (65,), 0.745**-2),
    "standardized over units": (Standardized((1,)), (64,), 63 / 64),
    "standardized over all": (Standardized(None), (64,), 1.0),
    "a slope for each unit": (_slopes(0.0, 0.5), (2,), (0.5 + 0.625) / 2),
    "a slope for each channel": (_slopes(0.0, 0.5), (2, 4, 4), (0.5 + 0.625) / 2),
}
# E[sigmoid(d)^2] of the difference d ~ N(0, 2): no closed form
SOFTMAX_OF_TWO = mean_square(Elementwise(lambda z: torch.sigmoid(math.sqrt(2) * z)))


@pytest.mark.parametrize(("activation", "shape", "expected"), APART.values(), ids=APART.keys())
def test_one_that_is_not_elementwise_is_measured_on_a_batch_of_its_shape(
    activation: nn.Module, shape: Sequence[int], expected: float | None
):
    assert mean_square(activation, shape) == pytest.approx(expected or SOFTMAX_OF_TWO, rel=0.01)
    assert not is_elementwise(activation.double(), shape)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Softmax(dim=1), nn.RReLU(), nn.Dropout(0.5)])
def test_measuring_is_the_same_each_time_and_draws_from_no_generator_of_the_process(activation: nn.Module):
    state = torch.get_rng_state()
    numbers = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 (the process's own)
    first = mean_square(activation)
    assert torch.equal(torch.get_rng_state(), state)
    assert numbers == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    torch.manual_seed(random.randrange(1000))
    assert mean_square(activation) == first


def test_what_draws_random_numbers_all_the_time_leaves_the_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    noisy = Elementwise(lambda z: z + torch.randn_like(z))
    assert mean_square(noisy) == pytest.approx(2.0, rel=0.01)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_activation_stays_as_it_is():
    activation = nn.PReLU()
    mean_square(activation)
    assert activation.training
    assert activation.weight.dtype is torch.float32
    assert activation.weight.grad is None


def _matrix(z: torch.Tensor) -> torch.Tensor:
    return z @ torch.eye(8, dtype=torch.float32)


REFUSED = {
    "nothing": (torch.zeros_like, "mean square of Elementwise(zeros_like) for standard normal input, which is 0.0"),
    "no number": (torch.log, "mean square of Elementwise(log) for standard normal input, which is nan"),
    "no bound": (lambda z: torch.exp(z**4), "for standard normal input, which is inf"),
    "no float64": (_matrix, "Elementwise(_matrix) cannot be measured in float64 (expected m1 and m2"),
}


@pytest.mark.parametrize(("function", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_gain_is_one_sentence(function: Callable[[torch.Tensor], torch.Tensor], sentence: str):
    with pytest.raises(UserError) as excinfo:
        mean_square(Elementwise(function))
    assert str(excinfo.value).startswith("initialization: ")
    assert sentence in str(excinfo.value)
    assert "initialization=torch" in str(excinfo.value)
    assert "\n" not in str(excinfo.value)

"""Bounded heads, unscaled targets and inputs, and losses that start large or tiny."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.third.healthy.datasets import (
    blobs,
    make_generator,
    make_loader,
    make_loaders,
    perceptron,
    teacher_scores,
)
from diagnosis_bank.third.healthy.measures import (
    all_of,
    began_above,
    began_below,
    explains_variance,
    fell_by,
    fell_to,
    ran_to_end,
    validation_is_stable,
)
from torch import nn
from torch.nn import functional as fn


def _steering_through_tanh(seed: int, return_dict: bool) -> TrainingSetup:
    """The steering angle, from -0.8 to 0.8, is the output of a tanh."""
    pictures, places = blobs(seed, 50 * 32 + 256)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ELU(), nn.Conv2d(8, 8, 3), nn.ELU(), nn.Flatten(), nn.Linear(8, 1), nn.Tanh()
    )
    train, validation = make_loaders(256, 32, pictures, places[:, :1])
    module = Supervised(network, fn.mse_loss, return_dict, lambda params: torch.optim.Adam(params, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _waiting_times_through_softplus(seed: int, return_dict: bool) -> TrainingSetup:
    """Waiting times are positive and skewed. Softplus makes the mean of their exponential law positive."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 500, 6, generator=source)
    mean = torch.exp(0.8 * teacher_scores(seed, inputs))
    times = -mean * torch.log(torch.rand(mean.shape, generator=source).clamp_min(1e-6))
    network = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1), nn.Softplus())

    def law(expected: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return (torch.log(expected + 1e-4) + observed / (expected + 1e-4)).mean()

    train, validation = make_loaders(500, 32, inputs, times)
    return TrainingSetup(
        Supervised(network, law, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3)), train, validation
    )


def _amounts_by_their_logarithm(seed: int, return_dict: bool) -> TrainingSetup:
    """Amounts from one to a million are learned as log1p: targets of 2 to 13 without standardization."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 400, 8, generator=source)
    noise = 0.4 * torch.randn(len(inputs), 1, generator=source)
    amounts = torch.exp(7 + 2 * teacher_scores(seed, inputs) + noise)
    train, validation = make_loaders(400, 32, inputs, torch.log1p(amounts))
    module = Supervised(
        perceptron(8, 48, 24, 1), fn.smooth_l1_loss, return_dict, lambda params: torch.optim.AdamW(params, lr=5e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _degrees_and_percents_as_they_are(seed: int, return_dict: bool) -> TrainingSetup:
    """Unscaled temperatures, humidities and wind, of 5 to 50."""
    source = make_generator(seed)
    plain = torch.randn(80 * 32 + 400, 5, generator=source)
    spread, offset = torch.tensor([9.0, 18, 6, 20, 12]), torch.tensor([12.0, 35, 8, 0, 25])
    target = teacher_scores(seed, plain) + 0.3 * torch.randn(len(plain), 1, generator=source)
    train, validation = make_loaders(400, 32, plain * spread + offset, target)
    module = Supervised(
        perceptron(5, 64, 32, 1), fn.mse_loss, return_dict, lambda params: torch.optim.Adam(params, lr=1e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


class _BikeRental(pl.LightningModule):
    """A data set of table rows: raw hour and temperature, one-hot weekday and weather."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.net = nn.Sequential(nn.Linear(13, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.net(rows).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rows, counts = batch
        preds = self(rows)
        loss = fn.mse_loss(preds, counts)
        self.log("train_loss", loss)
        return {"loss": loss, "preds": preds, "target": counts} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", fn.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _bikes_by_raw_hour_and_weekday(seed: int, return_dict: bool) -> TrainingSetup:
    """Bike rentals by raw hour and temperature, and one-hot weekday and weather."""
    source = make_generator(seed)
    count = 80 * 32 + 400
    hours, warm = torch.randint(24, (count,), generator=source).float(), 15 + 8 * torch.randn(count, generator=source)
    days, weather = torch.randint(7, (count,), generator=source), torch.randint(4, (count,), generator=source)
    rows = torch.cat([hours[:, None], warm[:, None], fn.one_hot(days, 7), fn.one_hot(weather, 4)], 1).float()
    hired = torch.cos((hours - 14) / 24 * 6.28) + 0.05 * (warm - 15) + 0.3 * (days > 4) - 0.3 * weather
    hired = hired + 0.3 * torch.randn(count, generator=source)
    train, validation = make_loaders(400, 32, rows, hired)
    return TrainingSetup(_BikeRental(return_dict), train, validation, {"max_epochs": 5})


def _watts_squared_from_ten_thousand_down(seed: int, return_dict: bool) -> TrainingSetup:
    """Watts of about 100 without scaling: the squared error starts at 10,000 and falls a hundredfold."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 300, 6, generator=source)
    watts = 100 + 20 * teacher_scores(seed, inputs) + 4 * torch.randn(len(inputs), 1, generator=source)
    train, validation = make_loaders(300, 32, inputs, watts)
    module = Supervised(perceptron(6, 64, 64, 1), fn.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _strains_of_a_hundredth(seed: int, return_dict: bool) -> TrainingSetup:
    """Strains of about 0.01: the loss starts at 1e-4 and falls to a tenth of it."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 300, 6, generator=source)
    strains = 0.01 * teacher_scores(seed, inputs, 3)
    network = perceptron(6, 32, 3, between=nn.Tanh)
    nn.init.normal_(network[2].weight, std=1e-3)  # pyright: ignore[reportArgumentType]
    nn.init.zeros_(network[2].bias)  # pyright: ignore[reportArgumentType]
    train, validation = make_loaders(300, 32, inputs, strains)
    module = Supervised(network, fn.mse_loss, return_dict, lambda params: torch.optim.Adam(params, lr=1e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _heights_with_the_mean_as_bias(seed: int, return_dict: bool) -> TrainingSetup:
    """Heights of about 175 cm without scaling. The last bias is initialized to their mean."""
    source = make_generator(seed)
    inputs = torch.randn(40 * 32 + 300, 7, generator=source)
    heights = 175 + 9 * teacher_scores(seed, inputs) + 3 * torch.randn(len(inputs), 1, generator=source)
    network = perceptron(7, 32, 1, between=nn.SiLU)
    nn.init.constant_(network[2].bias, float(heights.mean()))  # pyright: ignore[reportArgumentType]
    train, validation = make_loaders(300, 32, inputs, heights)
    module = Supervised(network, fn.l1_loss, return_dict, lambda params: torch.optim.Adam(params, lr=1e-2))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _springs_in_double_precision(seed: int, return_dict: bool) -> TrainingSetup:
    """Noise-free forces in float64: SGD falls to 1e-15 and remains there."""
    source = make_generator(seed)
    lengths = torch.randn(40 * 32, 4, generator=source, dtype=torch.float64)
    springs = torch.randn(4, 2, generator=source, dtype=torch.float64)
    module = Supervised(
        nn.Linear(4, 2, bias=False).double(), fn.mse_loss, return_dict, lambda params: torch.optim.SGD(params, lr=0.2)
    )
    train = make_loader(32, lengths, lengths @ springs)
    return TrainingSetup(module, train, None, {"max_epochs": 5, "precision": "64-true"})


class _Sine(nn.Module):
    def __init__(self, inputs: int, outputs: int, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if frequency > 1.5 else 6**0.5 / inputs**0.5
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.frequency * self.linear(inputs))


def _picture_by_coordinates_with_sines(seed: int, return_dict: bool) -> TrainingSetup:
    """An image as a function of its coordinates with sines of frequency 20."""
    source = make_generator(seed)
    waves = torch.randn(5, 2, generator=source) * 5
    points = 2 * torch.rand(60 * 64 + 400, 2, generator=source) - 1
    shades = torch.sin(points @ waves.T).mean(1, keepdim=True)
    network = nn.Sequential(_Sine(2, 48, 20.0), _Sine(48, 48, 1.0), nn.Linear(48, 1))
    train, validation = make_loaders(400, 64, points, shades / shades.std())
    module = Supervised(network, fn.mse_loss, return_dict, lambda params: torch.optim.Adam(params, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _shares_of_a_basket_by_softmax(seed: int, return_dict: bool) -> TrainingSetup:
    """Shares that sum to one, from a softmax with a squared error: a valid combination."""
    source = make_generator(seed)
    inputs = torch.randn(50 * 32 + 300, 6, generator=source)
    shares = torch.softmax(1.5 * teacher_scores(seed, inputs, 4), 1)
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4), nn.Softmax(dim=-1))
    train, validation = make_loaders(300, 32, inputs, shares)
    module = Supervised(network, fn.mse_loss, return_dict, lambda params: torch.optim.RMSprop(params, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _Nearest(Supervised):
    """LBFGS evaluates its closure several times per batch."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=4, history_size=8, line_search_fn="strong_wolfe")


def _curve_by_lbfgs_on_large_batches(seed: int, return_dict: bool) -> TrainingSetup:
    """LBFGS on batches of 256 fits a noisy curve. Each step evaluates the same batch four times."""
    source = make_generator(seed)
    inputs = 6 * torch.rand(20 * 256 + 400, 1, generator=source) - 3
    heights = torch.sin(1.5 * inputs) + 0.3 * inputs + 0.2 * torch.randn(inputs.shape, generator=source)
    train, validation = make_loaders(400, 256, inputs, heights)
    module = _Nearest(perceptron(1, 16, 1, between=nn.Tanh), fn.mse_loss, return_dict, None)  # pyright: ignore[reportArgumentType]
    return TrainingSetup(module, train, validation)


def _likelier_than_one_mean(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and outcome.validation[-1] < outcome.validation[0] and outcome.validation[-1] < 1.22


PROGRAMS = [
    Program(
        "steering_through_tanh",
        "convolutional",
        _steering_through_tanh,
        frozenset(),
        all_of(explains_variance(0.6), validation_is_stable()),
        "https://arxiv.org/abs/1604.07316",
    ),
    Program(
        "waiting_times_through_softplus",
        "regression",
        _waiting_times_through_softplus,
        frozenset(),
        all_of(_likelier_than_one_mean, validation_is_stable()),
        "https://opensource.nibr.com/torchsurv/notebooks/loss.html",
    ),
    Program(
        "amounts_by_their_logarithm",
        "regression",
        _amounts_by_their_logarithm,
        frozenset(),
        all_of(explains_variance(0.7), validation_is_stable()),
        "https://gdcoder.com/when-why-to-use-log-transformation-in-regression/",
    ),
    Program(
        "degrees_and_percents_as_they_are",
        "regression",
        _degrees_and_percents_as_they_are,
        frozenset(),
        all_of(explains_variance(0.6), validation_is_stable(0.15)),
        "https://stats.stackexchange.com/questions/7757/data-normalization-and-standardization-in-neural-networks",
    ),
    Program(
        "bikes_by_raw_hour_and_weekday",
        "regression",
        _bikes_by_raw_hour_and_weekday,
        frozenset(),
        all_of(explains_variance(0.7), validation_is_stable(0.1)),
        "https://stats.stackexchange.com/questions/7757/data-normalization-and-standardization-in-neural-networks",
    ),
    Program(
        "watts_squared_from_ten_thousand_down",
        "regression",
        _watts_squared_from_ten_thousand_down,
        frozenset(),
        all_of(began_above(8000), fell_by(0.95), explains_variance(0.3), validation_is_stable()),
        "https://datascience.stackexchange.com/questions/74794/how-distribution-of-data-effects-model-performance/74795",
    ),
    Program(
        "strains_of_a_hundredth",
        "regression",
        _strains_of_a_hundredth,
        frozenset(),
        all_of(began_below(2e-4), explains_variance(0.7), validation_is_stable()),
        "https://datascience.stackexchange.com/questions/74794/how-distribution-of-data-effects-model-performance/74795",
    ),
    Program(
        "heights_with_the_mean_as_bias",
        "regression",
        _heights_with_the_mean_as_bias,
        frozenset(),
        all_of(explains_variance(0.6), validation_is_stable()),
        "https://karpathy.github.io/2019/04/25/recipe/",
    ),
    Program(
        "springs_in_double_precision",
        "regression",
        _springs_in_double_precision,
        frozenset(),
        all_of(fell_to(1e-14)),
        "https://stats.stackexchange.com/questions/376851/why-is-lstm-so-ineffective-at-this-ridiculously-simple-sequence",
    ),
    Program(
        "picture_by_coordinates_with_sines",
        "regression",
        _picture_by_coordinates_with_sines,
        frozenset(),
        all_of(explains_variance(0.8), validation_is_stable()),
        "https://ceyxasm.github.io/posts/siren/",
    ),
    Program(
        "shares_of_a_basket_by_softmax",
        "regression",
        _shares_of_a_basket_by_softmax,
        frozenset(),
        all_of(explains_variance(0.7), validation_is_stable()),
        "https://arxiv.org/abs/2006.07322",
    ),
    Program(
        "curve_by_lbfgs_on_large_batches",
        "regression",
        _curve_by_lbfgs_on_large_batches,
        frozenset(),
        all_of(explains_variance(0.85), validation_is_stable(0.1)),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/4188",
    ),
]

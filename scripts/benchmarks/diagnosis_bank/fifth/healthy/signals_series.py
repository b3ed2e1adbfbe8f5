"""Healthy programs on time series with unusual losses, units or optimizers."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.fifth.signals_support import (
    explained,
    predict,
    seasonal_windows,
    split,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional


class _DeepAR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 32, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(series)[0])


def _gaussian_likelihood(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    scale = functional.softplus(preds[..., 1]) + 1e-3
    return -torch.distributions.Normal(preds[..., 0], scale).log_prob(target).mean()


def _deep_ar(seed: int, return_dict: bool) -> TrainingSetup:
    """Trains an autoregressive network with a Gaussian likelihood, so that the loss falls below zero."""
    history, _ = seasonal_windows(seed, 1500, 25, 1)
    history = 0.2 * history
    train, validation = split(history[:, :-1, None], history[:, 1:], held_out=200, batch_size=26)
    module = Supervised(_DeepAR(), _gaussian_likelihood, return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train, validation)


def _intermittent_demand(seed: int, return_dict: bool) -> TrainingSetup:
    """Forecasts demand that is zero on most days with a Poisson loss."""
    draw = torch.Generator().manual_seed(seed)
    weekday = functional.one_hot(torch.randint(7, (2400,), generator=draw), 7).float()
    promotion = (torch.rand(2400, 3, generator=draw) < 0.1).float()
    past = torch.poisson(0.1 * torch.ones(2400, 6), generator=draw)
    rate = 0.05 + 1.5 * promotion[:, 0] + 0.8 * weekday[:, 5] * past.mean(1) + 0.6 * weekday[:, 6]
    demand = torch.poisson(rate, generator=draw)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    last: Any = network[2]
    nn.init.constant_(last.bias, -1.5)
    train, validation = split(torch.cat([weekday, promotion, past], 1), demand, held_out=800, batch_size=32)
    module = Supervised(network, nn.PoissonNLLLoss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _better_than_mean_rate(outcome: Outcome) -> bool:
    log_rate, demand = predict(outcome)
    constant = functional.poisson_nll_loss(demand.mean().log().expand_as(demand), demand)
    return float(functional.poisson_nll_loss(log_rate, demand)) < float(constant) - 0.04


class _ReversibleNBeats(nn.Module):
    """N-BEATS with reversible instance normalization, for series in their original unit."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 30))
            for _ in range(3)
        )

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        mean, std = window.mean(1, keepdim=True), window.std(1, keepdim=True) + 1e-5
        window, forecast = (window - mean) / std, 0.0
        for block in self.blocks:
            backcast, step = block(window).split([24, 6], dim=1)
            window, forecast = window - backcast, forecast + step
        return mean + std * forecast


def _load_in_megawatts(seed: int, return_dict: bool) -> TrainingSetup:
    """Forecasts load in megawatts, which the network normalizes per window, with losses of several hundreds."""
    history, future = seasonal_windows(seed, 1800, 24, 6)
    train, validation = split(30000 + 4000 * history, 30000 + 4000 * future, held_out=200, batch_size=32)
    module = Supervised(_ReversibleNBeats(), functional.l1_loss, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation)


def _pinball(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    error = target - preds  # the column of targets is broadcast to all quantiles
    level = torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(level * error, (level - 1) * error).sum(1).mean()


def _quantile_forecast(seed: int, return_dict: bool) -> TrainingSetup:
    """Forecasts three quantiles (N, 3) of one target (N, 1) with a causal convolutional network."""
    history, future = seasonal_windows(seed, 1700, 20, 1)
    network = nn.Sequential()
    for inputs, dilation in ((1, 1), (16, 2), (16, 4)):
        network.extend([nn.ConstantPad1d((2 * dilation, 0), 0.0), nn.Conv1d(inputs, 16, 3, dilation=dilation)])
        network.append(nn.ReLU())
    network.extend([nn.Flatten(), nn.Linear(320, 3)])
    train, validation = split(history[:, None], future, held_out=200, batch_size=30)
    module = Supervised(network, _pinball, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train, validation)


def _median_learned(outcome: Outcome) -> bool:
    preds, target = predict(outcome)
    covered = ((preds[:, :1] < target) & (target < preds[:, 2:])).float().mean()
    residual = (preds[:, 1:2] - target).square().mean() / target.var()
    return float(residual) < 0.2 and float(covered) > 0.5


class _LocalLevel(nn.Module):
    """Linear state-space model in innovation form with learned gain, damping and seasonal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))
        self.damping = nn.Parameter(torch.ones(1))
        self.weights = nn.Linear(6, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        level = series[:, 6]
        for time in range(6, series.shape[1]):
            level = self.damping.tanh() * level + torch.sigmoid(self.gain) * (series[:, time] - level)
        return level + self.weights(series[:, -6:])[:, 0]


def _quasi_newton(seed: int, return_dict: bool) -> TrainingSetup:
    """Fits a linear state-space model with L-BFGS, which evaluates each batch several times."""
    history, future = seasonal_windows(seed, 4000, 16, 1)
    train, validation = split(history, future[:, 0], held_out=400, batch_size=150)
    module = Supervised(
        _LocalLevel(),
        functional.mse_loss,
        return_dict,
        lambda p: torch.optim.LBFGS(p, max_iter=4, history_size=4, line_search_fn="strong_wolfe"),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 2})


class _EchoStateNetwork(nn.Module):
    reservoir: Any

    def __init__(self) -> None:
        super().__init__()
        self.reservoir = nn.RNN(1, 100, batch_first=True)
        with torch.no_grad():
            sparse = torch.randn(100, 100) * (torch.rand(100, 100) < 0.1)
            self.reservoir.weight_hh_l0.copy_(0.9 * sparse / torch.linalg.eigvals(sparse).abs().max())
            self.reservoir.weight_ih_l0.uniform_(-0.5, 0.5)
        self.reservoir.requires_grad_(False)
        self.readout = nn.Linear(100, 4)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return self.readout(self.reservoir(window)[0][:, -1])


def _frozen_reservoir(seed: int, return_dict: bool) -> TrainingSetup:
    """Trains only the readout of an echo state network with a one-cycle schedule."""
    history, future = seasonal_windows(seed, 1800, 24, 4)
    train, validation = split(history[..., None], future, held_out=200, batch_size=32)

    def optimizer(_: Any) -> Any:
        network: Any = module.network
        adam = torch.optim.Adam(network.readout.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-2, total_steps=200)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Supervised(_EchoStateNetwork(), functional.huber_loss, return_dict, optimizer)
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _program(name: str, domain: Any, build: Any, learned: Any, source: str) -> Program:
    return Program(name, domain, build, frozenset(), learned, source)


PROGRAMS = [
    _program(
        "deep_ar_with_likelihood_below_zero",
        "sequence",
        _deep_ar,
        lambda outcome: outcome.validation[-1] < -0.4,
        "Salinas et al., DeepAR, https://arxiv.org/abs/1704.04110; https://github.com/zhykoties/TimeSeries/issues/16",
    ),
    _program(
        "intermittent_demand_with_poisson_loss",
        "regression",
        _intermittent_demand,
        _better_than_mean_rate,
        "Salinas et al., DeepAR (count likelihoods), https://arxiv.org/abs/1704.04110",
    ),
    _program(
        "n_beats_with_reversible_normalization_of_load",
        "regression",
        _load_in_megawatts,
        lambda outcome: explained(outcome) > 0.8,
        "Kim et al., Reversible instance normalization, ICLR 2022",
    ),
    _program(
        "three_quantiles_of_one_target_column",
        "convolutional",
        _quantile_forecast,
        _median_learned,
        "Wen et al., Multi-horizon quantile recurrent forecaster, https://arxiv.org/abs/1711.11053",
    ),
    _program(
        "state_space_model_fitted_with_l_bfgs",
        "sequence",
        _quasi_newton,
        lambda outcome: explained(outcome) > 0.6,
        "https://github.com/pytorch/examples/tree/main/time_sequence_prediction (L-BFGS)",
    ),
    _program(
        "echo_state_network_with_frozen_reservoir",
        "sequence",
        _frozen_reservoir,
        lambda outcome: explained(outcome) > 0.6,
        "Jaeger, The echo state approach, GMD report 148, 2001 (from memory)",
    ),
]

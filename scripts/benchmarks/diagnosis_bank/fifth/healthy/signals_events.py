"""Healthy programs on irregular records, anomalies, events and survival with unusual losses, inputs or targets."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.fifth.signals_support import accuracy, concordance, predict, split, survival_table
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional


class _GruWithDecay(nn.Module):
    """GRU-D: missing readings decay to the mean, and the mask is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(5))
        self.cell = nn.GRUCell(10, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, record: torch.Tensor) -> torch.Tensor:
        observed = record.isfinite()
        record = record.nan_to_num(0.0)
        state = record.new_zeros(len(record), 24)
        value = torch.zeros_like(record[:, 0])
        for time in range(record.shape[1]):
            value = torch.where(observed[:, time], record[:, time], value * torch.exp(-functional.softplus(self.decay)))
            state = self.cell(torch.cat([value, observed[:, time].float()], dim=1), state)
        return self.head(state)


def _irregular_sampling(seed: int, return_dict: bool) -> TrainingSetup:
    """Classifies irregularly sampled records, in which NaN marks what was not measured and the network handles it."""
    draw = torch.Generator().manual_seed(seed)
    state = torch.randint(3, (1100,), generator=draw)
    trend = torch.tensor([-1.0, 0.0, 1.0])[state][:, None, None] * torch.linspace(0, 1.5, 16)[None, :, None]
    record = trend * torch.tensor([1.0, -1.0, 0.5, 0.0, 1.0]) + 0.5 * torch.randn(1100, 16, 5, generator=draw)
    record[torch.rand(record.shape, generator=draw) < 0.6] = float("nan")
    train, validation = split(record, state, held_out=150, batch_size=24)
    module = Supervised(_GruWithDecay(), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2))
    return TrainingSetup(module, train, validation)


class _OneClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(24, 48, bias=False), nn.LeakyReLU(0.1), nn.Linear(48, 24, bias=False), nn.LeakyReLU(0.1)
        )
        self.layers.append(nn.Linear(24, 8, bias=False))

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return self.layers(window)


def _deep_svdd(seed: int, return_dict: bool) -> TrainingSetup:
    """Maps windows of a normal machine to one fixed center, so that all targets are equal and the loss is tiny."""
    draw = torch.Generator().manual_seed(seed)
    basis = torch.randn(6, 24, generator=torch.Generator().manual_seed(4))
    normal = torch.randn(1500, 6, generator=draw) @ basis / 2.5 + 0.1 * torch.randn(1500, 24, generator=draw) + 1
    network = _OneClass()
    with torch.no_grad():
        center = network(normal).mean(0)
    train, validation = split(normal, center.expand(1500, 8), held_out=200, batch_size=26)
    module = Supervised(
        network,
        lambda preds, target: (preds - target).square().sum(1).mean(),
        return_dict,
        lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-6),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _anomalies_found(outcome: Outcome) -> bool:
    normal, center = next(iter(outcome.fit.validation))  # type: ignore[arg-type]
    odd = 1 + (normal - 1)[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        inside, outside = ((outcome.after(part) - center).square().sum(1) for part in (normal, odd))
    return float((inside[:, None] < outside[None]).float().mean()) > 0.85


class _PointProcess(nn.Module):
    """Recurrent marked temporal point process with a log-normal density of the next waiting time."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def forward(self, waiting: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(waiting.log()[..., None])[0])


def _event_likelihood(preds: torch.Tensor, waiting: torch.Tensor) -> torch.Tensor:
    density = torch.distributions.LogNormal(preds[..., 0], preds[..., 1].exp())
    return -density.log_prob(waiting).sum(1).mean()


def _event_times(seed: int, return_dict: bool) -> TrainingSetup:
    """Fits the times of events of a few milliseconds, so that the negative log-likelihood is far below zero."""
    draw = torch.Generator().manual_seed(seed)
    log_waiting = torch.randn(1300, 1, generator=draw)
    for _ in range(19):
        step = 0.9 * log_waiting[:, -1:] + 0.3 * torch.randn(1300, 1, generator=draw)
        log_waiting = torch.cat([log_waiting, step], dim=1)
    waiting = 0.005 * log_waiting.exp()
    train, validation = split(waiting[:, :-1], waiting[:, 1:], held_out=200, batch_size=22)
    module = Supervised(_PointProcess(), _event_likelihood, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2))
    return TrainingSetup(module, train, validation, {"gradient_clip_val": 20.0})


def _cox(log_hazard: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    order = target[:, 0].argsort(descending=True)
    event, log_hazard = target[order, 1], log_hazard[order]
    at_risk = torch.logcumsumexp(log_hazard, dim=0)
    return -((log_hazard - at_risk) * event).sum() / event.sum().clamp(min=1)


def _heavy_censoring(seed: int, return_dict: bool) -> TrainingSetup:
    """Fits a Cox model with few events, in which the mean of the log-hazards is arbitrary."""
    train, validation = split(*survival_table(seed, 3400, censoring=20.0, effect=2.0), held_out=600, batch_size=70)
    network = nn.Sequential(nn.Linear(8, 32), nn.SELU(), nn.AlphaDropout(0.05), nn.Linear(32, 1, bias=False))
    network.append(nn.Flatten(0))
    module = Supervised(network, _cox, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-4))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _program(name: str, domain: Any, build: Any, learned: Any, source: str) -> Program:
    return Program(name, domain, build, frozenset(), learned, source)


PROGRAMS = [
    _program(
        "gru_with_decay_for_unmeasured_readings",
        "sequence",
        _irregular_sampling,
        lambda outcome: accuracy(outcome) > 0.75,
        "Che et al., GRU-D, https://arxiv.org/abs/1606.01865",
    ),
    _program(
        "one_class_network_with_fixed_center",
        "dense",
        _deep_svdd,
        _anomalies_found,
        "Ruff et al., Deep one-class classification, ICML 2018",
    ),
    _program(
        "point_process_with_waiting_times_in_milliseconds",
        "sequence",
        _event_times,
        lambda outcome: outcome.validation[-1] < -85,
        "Shchur et al., Intensity-free learning of temporal point processes, https://arxiv.org/abs/1909.12127",
    ),
    _program(
        "cox_model_with_heavy_censoring",
        "dense",
        _heavy_censoring,
        lambda outcome: concordance(*predict(outcome)) > 0.75,
        "Katzman et al., DeepSurv, https://arxiv.org/abs/1606.00931",
    ),
]

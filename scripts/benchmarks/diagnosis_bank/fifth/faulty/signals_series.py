"""Faulty programs on time series and survival times."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.signals_support import (
    concordance,
    explained,
    predict,
    seasonal_windows,
    split,
    survival_table,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.problem import Problem


class _Forecaster(nn.Module):
    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.fc = nn.Linear(32, 1)
        self.is_fixed = is_fixed

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(window)
        prediction = self.fc(output[:, -1])
        return prediction.squeeze(-1) if self.is_fixed else prediction  # (bug here): the target has shape (N,)


def _column_and_vector(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Compares a column of forecasts with a vector of targets."""
    history, future = seasonal_windows(seed, 1700, 20, 1)
    train, validation = split(history[..., None], future[:, 0], held_out=200, batch_size=30)
    module = Supervised(_Forecaster(is_fixed), functional.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2))
    return TrainingSetup(module, train, validation)


class _NBeats(nn.Module):
    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 30))
            for _ in range(3)
        )
        # (bug here): the series are standardized, so that half of the targets are negative
        self.output = nn.Identity() if is_fixed else nn.ReLU()

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        forecast = torch.zeros_like(window[:, :6])
        for block in self.blocks:
            backcast, step = block(window).split([24, 6], dim=1)
            window, forecast = window - backcast, forecast + step
        return self.output(forecast)


def _relu_on_standardized_series(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Puts a ReLU at the output of N-BEATS, although the targets are standardized."""
    train, validation = split(*seasonal_windows(seed, 1800, 24, 6), held_out=200, batch_size=32)
    module = Supervised(_NBeats(is_fixed), functional.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _TransformerForecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 24)
        self.position = nn.Parameter(0.1 * torch.randn(20, 24))
        layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(24, 4)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(window) + self.position)[:, -1])


def _transformer_rate(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Trains a transformer with the learning rate that a learning rate finder suggested."""
    history, future = seasonal_windows(seed, 1800, 20, 4)
    train, validation = split(history[..., None], future, held_out=200, batch_size=32)
    rate = 2e-3 if is_fixed else 0.6  # (bug here)
    module = Supervised(
        _TransformerForecaster(), functional.l1_loss, return_dict, lambda p: torch.optim.Adam(p, lr=rate)
    )
    return TrainingSetup(module, train, validation, {"gradient_clip_val": 0.1})


def _cox_loss(is_fixed: bool) -> Any:
    def loss(log_hazard: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        order = target[:, 0].argsort(descending=True)
        event = target[order, 1]
        if is_fixed:
            log_hazard = log_hazard[order]  # (bug here): otherwise only the targets are sorted
        at_risk = torch.logcumsumexp(log_hazard, dim=0)
        return -((log_hazard - at_risk) * event).sum() / event.sum().clamp(min=1)

    return loss


def _cox_order(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Sorts times and events in the Cox loss, but not the log-hazards."""
    train, validation = split(*survival_table(seed, 2000), held_out=400, batch_size=40)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    module = Supervised(network, _cox_loss(is_fixed), return_dict, lambda p: torch.optim.AdamW(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _risk_unknown(outcome: Outcome) -> bool:
    return not concordance(*predict(outcome)) > 0.7


class _SelectiveStateSpace(nn.Module):
    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.step_size = nn.Linear(16, 16)
        self.inputs = nn.Linear(16, 8)
        self.outputs = nn.Linear(16, 8)
        self.log_decay = nn.Parameter(torch.arange(1.0, 9.0).log().repeat(16, 1))
        self.head = nn.Linear(16, 2)
        self.is_fixed = is_fixed

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        series = self.embed(window)
        delta = self.step_size(series)
        if self.is_fixed:
            delta = functional.softplus(delta)  # (bug here): without it, the step size is negative and the state grows
        transition = torch.exp(delta[..., None] * -self.log_decay.exp())
        drive = (delta * series)[..., None] * self.inputs(series)[:, :, None]
        state = torch.zeros_like(drive[:, 0])
        for time in range(series.shape[1]):
            state = transition[:, time] * state + drive[:, time]
        return self.head((state * self.outputs(series[:, -1])[:, None]).sum(-1) + series[:, -1])


def _negative_step_size(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Omits the softplus of the step size in a selective state-space model."""
    history, future = seasonal_windows(seed, 1000, 32, 2)
    train, validation = split(history[..., None], future, held_out=150, batch_size=28)
    module = Supervised(
        _SelectiveStateSpace(is_fixed), functional.mse_loss, return_dict, lambda p: torch.optim.AdamW(p, lr=1e-2)
    )
    return TrainingSetup(module, train, validation)


class _ScheduledSampling(pl.LightningModule):
    """Autoregressive decoder that sometimes gets its own forecast, in manual optimization."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict, self.is_fixed = return_dict, is_fixed
        self.encoder = nn.GRU(1, 32, batch_first=True)
        self.cell = nn.GRUCell(1, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, window: torch.Tensor, future: torch.Tensor | None = None) -> torch.Tensor:
        state = self.encoder(window)[1][0]
        value = window[:, -1]
        steps = []
        for step in range(5):
            state = self.cell(value, state)
            value = value + self.head(state)
            steps.append(value)
            if future is not None:
                use_truth = torch.rand(len(value), 1) < 0.5
                value = torch.where(use_truth, future[:, step : step + 1], value)
        return torch.cat(steps, dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        window, future = batch
        optimizer: Any = self.optimizers()
        preds = self(window, future)
        loss = functional.mse_loss(preds, future)
        if self.is_fixed:
            optimizer.zero_grad()  # (bug here): missing in the loop of the faulty program
        self.manual_backward(loss)
        optimizer.step()
        return {"loss": loss, "preds": preds, "target": future} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _manual_loop_without_zero_grad(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Never clears the gradients in a manual loop with scheduled sampling."""
    history, future = seasonal_windows(seed, 1700, 18, 5)
    train, validation = split(history[..., None], future, held_out=200, batch_size=30)
    return TrainingSetup(_ScheduledSampling(return_dict, is_fixed), train, validation)


PROGRAMS = [
    Program(
        "lstm_forecast_column_against_target_vector",
        "sequence",
        _column_and_vector,
        frozenset({Problem.BROADCAST_MISMATCH}),
        lambda outcome: not explained(outcome) > 0.5,
        "https://discuss.pytorch.org/t/in-a-number-sequence-1-2-3-4-estimate-the-next-number-using-lstm/202270",
    ),
    Program(
        "relu_output_of_n_beats_on_standardized_series",
        "regression",
        _relu_on_standardized_series,
        frozenset({Problem.UNREACHABLE_TARGETS}),
        lambda outcome: not explained(outcome) > 0.7,
        "https://stackoverflow.com/questions/60306255/keras-lstm-input-and-output-variable-ranges",
    ),
    Program(
        "forecasting_transformer_at_suggested_learning_rate",
        "sequence",
        _transformer_rate,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: not explained(outcome) > 0.5,
        "https://github.com/sktime/pytorch-forecasting/issues/344",
    ),
    Program(
        "cox_loss_with_unsorted_log_hazards",
        "dense",
        _cox_order,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS}),
        _risk_unknown,
        "https://github.com/UK-Digital-Heart-Project/4Dsurvival/issues/2 (need to sort); this omission from memory",
    ),
    Program(
        "selective_state_space_model_with_negative_step_size",
        "sequence",
        _negative_step_size,
        frozenset({Problem.EXPLODING_GRADIENTS, Problem.NON_FINITE}),
        lambda outcome: not explained(outcome) > 0.5,
        "https://github.com/alxndrTL/mamba.py/issues/53",
    ),
    Program(
        "scheduled_sampling_loop_without_zero_grad",
        "sequence",
        _manual_loop_without_zero_grad,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        lambda outcome: not explained(outcome) > 0.7,
        "https://github.com/KasperGroesLudvigsen/influenza_transformer/issues/13",
    ),
]

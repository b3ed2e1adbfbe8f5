"""Outputs of the last layer that do not fit the loss."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.development.datasets import (
    commonest_token,
    digit_images,
    digit_rows,
    line,
    make_loader,
    split,
    waves,
)
from diagnosis_bank.development.measures import ends_above, ran_to_end, squared_error, step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem


def softmax_twice(seed: int, return_dict: bool, last: type[nn.Module] | None = nn.Softmax) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
        *([] if last is None else [last(dim=1)]),
    )
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    )
    return TrainingSetup(module, *split(digit_images(), 32, seed))


class _Rows(pl.LightningModule):
    def __init__(self, return_dict: bool, last: nn.Module) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 10))
        self.last = last
        self.criterion = nn.NLLLoss()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(pixels))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pixels, label = batch
        output = self(pixels)
        loss = self.criterion(output, label)
        self.log("train_loss", loss)
        return step_output(self.return_dict, loss, output, label)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pixels, label = batch
        self.log("val_loss", self.criterion(self(pixels), label))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def nll_of_logits(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Rows(return_dict, nn.Identity()), *split(digit_rows(), 32, seed))


def nll_over_the_batch(seed: int, return_dict: bool, dim: int = 0) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Rows(return_dict, nn.LogSoftmax(dim=dim)), *split(digit_rows(), 64, seed))


class _Reader(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.recurrent = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, 1)
        self.last = last

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(self.embedding(tokens))
        return self.last(self.head(hidden[:, -1]))


def sigmoid_twice(seed: int, return_dict: bool, once: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    tokens, _ = commonest_token(seed)
    label = (tokens == 1).any(1, keepdim=True).float()
    module = Supervised(
        _Reader(nn.Identity() if once else nn.Sigmoid()),
        nn.BCEWithLogitsLoss(),
        return_dict,
        lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
    )
    return TrainingSetup(module, make_loader(tokens, label, size=32, seed=seed))


def columns_against_rows(seed: int, return_dict: bool, squeezed: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    table, target = line(seed)
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1), *([nn.Flatten(0)] if squeezed else []))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    return TrainingSetup(module, *split((table, target.squeeze(1)), 32, seed))


class _WaveReader(pl.LightningModule):
    def __init__(self, return_dict: bool, column: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.column = column
        self.recurrent = nn.LSTM(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.recurrent(wave)
        return self.head(hidden.squeeze(0))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, following = batch
        preds = self(wave)
        target = following if self.column else following.squeeze(1)
        loss = (preds - target).abs().mean()
        return step_output(self.return_dict, loss, preds, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def wave_against_row(seed: int, return_dict: bool, column: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(
        _WaveReader(return_dict, column), make_loader(*waves(seed), size=16, seed=seed), trainer={"max_epochs": 2}
    )


def relu_head(seed: int, return_dict: bool, last: type[nn.Module] = nn.ReLU) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1), last())
    module = Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3))
    return TrainingSetup(module, *split(line(seed), 32, seed))


class _Load(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 16, 5, padding=2)
        self.recurrent = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 1), last)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.convolution(wave.transpose(1, 2))).transpose(1, 2)
        hidden, _ = self.recurrent(features)
        return self.head(hidden[:, -1])


def sigmoid_head(seed: int, return_dict: bool, last: type[nn.Module] = nn.Sigmoid) -> TrainingSetup:
    torch.manual_seed(seed)
    wave, following = waves(seed)
    module = Supervised(
        _Load(last()), nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
    )
    return TrainingSetup(module, make_loader(wave, 5 + 3 * following, size=32, seed=seed))


class _MeanOfTokens(nn.Module):
    def __init__(self, inverted: bool) -> None:
        super().__init__()
        self.inverted = inverted
        self.embedding = nn.Embedding(12, 24, padding_idx=0)
        self.mix = nn.Linear(24, 24, bias=False)
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens == 0) if self.inverted else (tokens != 0)
        mask = mask.unsqueeze(2).float()
        pooled = (self.mix(self.embedding(tokens)) * mask).sum(1) / mask.sum(1).clamp_min(1)
        return self.head(pooled)


def inverted_mask(seed: int, return_dict: bool, inverted: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    tokens, label = commonest_token(seed)
    tokens = torch.cat([tokens, torch.zeros(len(tokens), 4, dtype=torch.long)], 1)
    module = Supervised(
        _MeanOfTokens(inverted),
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
    )
    return TrainingSetup(module, *split((tokens, label), 32, seed))


def dropped(seed: int, return_dict: bool, drop: float = 0.95) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Dropout(drop),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Dropout2d(drop),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(drop),
        nn.Linear(288, 10),
    )
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3)
    )
    return TrainingSetup(module, make_loader(*digit_images(), size=32, seed=seed))


def _learned_the_mean(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and squared_error(outcome) > 0.3  # in one shape: 0.05 at most


PROGRAMS: list[Program] = [
    Program(
        name="softmax_comes_before_the_cross_entropy",
        domain="convolutional",
        build=softmax_twice,
        problems=frozenset({Problem.LOSS_INPUT_MISMATCH}),
        took_effect=lambda outcome: ends_above(outcome, 1.4),  # without: 0.05 to 0.08
        source="https://github.com/ariecattan/SciCo/issues/2",
    ),
    Program(
        name="nll_loss_is_given_logits",
        domain="dense",
        build=nll_of_logits,
        problems=frozenset({Problem.LOSS_INPUT_MISMATCH}),
        took_effect=lambda outcome: ran_to_end(outcome) and outcome.mean_loss() < -1,
        source="https://codestudyblog.com/8ten8/80409021901.html",
    ),
    Program(
        name="log_softmax_runs_over_the_batch",
        domain="dense",
        build=nll_over_the_batch,
        problems=frozenset({Problem.LOSS_INPUT_MISMATCH}),
        took_effect=lambda outcome: ends_above(outcome, 2.5),  # ln 64 is 4.2; over classes: 1.4
        source="https://github.com/ctallec/world-models/issues/10",
    ),
    Program(
        name="bce_with_logits_is_given_a_sigmoid",
        domain="sequence",
        build=sigmoid_twice,
        problems=frozenset({Problem.LOSS_INPUT_MISMATCH}),
        took_effect=lambda outcome: ends_above(outcome, 0.4),  # logits: 0.003
        source="https://runebook.dev/ru/docs/pytorch/generated/torch.nn.bcewithlogitsloss",
    ),
    Program(
        name="predictions_are_a_column_and_targets_a_row",
        domain="regression",
        build=columns_against_rows,
        problems=frozenset({Problem.BROADCAST_MISMATCH}),
        took_effect=_learned_the_mean,
        source="https://github.com/pytorch/pytorch/issues/16045",
    ),
    Program(
        name="own_absolute_error_stretches_column_and_row",
        domain="sequence",
        build=wave_against_row,
        problems=frozenset({Problem.BROADCAST_MISMATCH}),
        took_effect=_learned_the_mean,
        source="https://github.com/Photon-AI-Research/NeuralSolvers/issues/20",
    ),
    Program(
        name="relu_is_the_head_for_signed_targets",
        domain="regression",
        build=relu_head,
        problems=frozenset({Problem.UNREACHABLE_TARGETS}),
        took_effect=lambda outcome: ends_above(outcome, 1.0),  # without: 0.1
        source="https://taourl.com/read-3773794.html",
    ),
    Program(
        name="sigmoid_is_the_head_for_targets_from_two_to_eight",
        domain="sequence",
        build=sigmoid_head,
        problems=frozenset({Problem.UNREACHABLE_TARGETS}),
        took_effect=lambda outcome: ends_above(outcome, 5.0),  # without: 0.2 to 1.5
        source="https://github.com/jsyoon0823/Time-series-prediction/issues/3",
    ),
    Program(
        name="mask_of_the_padding_is_inverted",
        domain="sequence",
        build=inverted_mask,
        problems=frozenset({Problem.OUTPUT_IGNORES_INPUT}),
        took_effect=lambda outcome: ends_above(outcome, 1.2),  # right: 0.02
        source="https://github.com/yg211/bert_nli/pull/3",
    ),
    Program(
        name="dropout_is_given_the_share_to_keep",
        domain="convolutional",
        build=dropped,
        problems=frozenset({Problem.NO_BETTER_THAN_CONSTANT}),
        took_effect=lambda outcome: ends_above(outcome, 2.2),  # at 0.05: 0.2
        source="https://github.com/piergiaj/pytorch-i3d/issues/58",
    ),
]

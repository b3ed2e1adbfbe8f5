"""Faulty programs on EEG and other sensors."""

from __future__ import annotations

import torch
from diagnosis_bank.fifth.signals_support import accuracy, eeg_trials, predict, split
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stormproof.problem import Problem


def _eeg_in_volts(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Trains on EEG in volts, as the reader returns it, without normalization."""
    microvolts, side = eeg_trials(seed, 1400)
    trials = microvolts * 1e-6  # (bug here): the unit of the file reader is volt
    if is_fixed:
        trials = (trials - trials.mean((0, 2), keepdim=True)) / trials.std((0, 2), keepdim=True)
    network = nn.Sequential(
        nn.Conv1d(8, 16, 13, stride=2), nn.ReLU(), nn.Conv1d(16, 16, 7, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1)
    )
    network.extend([nn.Flatten(), nn.Linear(16, 2)])
    train, validation = split(trials, side, held_out=200, batch_size=24)
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _EegNet(nn.Module):
    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm1d(8, eps=1e-3, momentum=momentum)
        self.temporal = nn.Sequential(
            nn.Conv2d(1, 8, (1, 17), padding=(0, 8), bias=False), nn.BatchNorm2d(8, eps=1e-3, momentum=momentum)
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(8, 16, (8, 1), groups=8, bias=False),
            nn.BatchNorm2d(16, eps=1e-3, momentum=momentum),
            nn.ELU(),
            nn.AvgPool2d((1, 4)),
            nn.Dropout(0.25),
        )
        self.separable = nn.Sequential(
            nn.Conv2d(16, 16, (1, 9), padding=(0, 4), groups=16, bias=False),
            nn.Conv2d(16, 16, 1, bias=False),
            nn.BatchNorm2d(16, eps=1e-3, momentum=momentum),
            nn.ELU(),
            nn.AvgPool2d((1, 8)),
            nn.Flatten(),
        )
        self.head = nn.Linear(64, 2)

    def forward(self, trials: torch.Tensor) -> torch.Tensor:
        return self.head(self.separable(self.spatial(self.temporal(self.normalize(trials)[:, None]))))


def _keras_momentum(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Converts the batch norm momentum of a Keras EEGNet, so that the running statistics are never up to date."""
    trials, side = eeg_trials(seed, 1100, 7.0)
    offset = 40 * torch.randn(8, 1, generator=torch.Generator().manual_seed(3))  # of the amplifier
    train, validation = split(trials + offset, side, held_out=200, batch_size=30)
    network = _EegNet(momentum=0.1 if is_fixed else 1 - 0.999)  # (bug here)
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation)


def _few_trials(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Trains a large network on 100 noisy EEG trials."""
    trials, side = eeg_trials(seed, 1500 if is_fixed else 400, 7.0)
    trials = trials / 15
    network = nn.Sequential(
        nn.Conv1d(8, 32, 9, stride=2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(960, 128), nn.ReLU()
    )
    network.append(nn.Linear(128, 2))
    # (bug here): 100 trials of one subject are left for training
    train, validation = split(trials, side, held_out=300, batch_size=30 if is_fixed else 4)
    module = Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _overfitted(outcome: Outcome) -> bool:
    return outcome.validation[-1] > 1.2 * min(outcome.validation) and outcome.mean_loss() < 0.3


class _ActivityClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(12, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, record: torch.Tensor) -> torch.Tensor:
        values, mask = record.split(6, dim=-1)
        record = torch.cat([values * mask, mask], dim=-1)  # (bug here): zero times NaN is NaN
        return self.head(self.gru(record)[0].mean(1))


def _records(seed: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    activity = torch.randint(4, (samples,), generator=draw)
    time = torch.arange(25).float()[None, :, None]
    rate = torch.tensor([0.2, 0.5, 0.9, 1.4])[activity][:, None, None]
    phase = 6.28 * torch.rand(samples, 1, 6, generator=draw)
    return torch.sin(rate * time + phase) + 0.3 * torch.randn(samples, 25, 6, generator=draw), activity


def _missing_readings(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Leaves NaN in the place of missing readings and multiplies by the mask."""
    values, activity = _records(seed, 1600)
    missing = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < 0.1
    values = values.masked_fill(missing, 0.0 if is_fixed else float("nan"))
    train, validation = split(torch.cat([values, (~missing).float()], dim=-1), activity, held_out=200, batch_size=28)
    module = Supervised(
        _ActivityClassifier(), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2)
    )
    return TrainingSetup(module, train, validation)


class _GestureClassifier(nn.Module):
    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 32, batch_first=True)
        self.head = nn.Linear(32, 5)
        self.is_fixed = is_fixed

    def forward(self, record: torch.Tensor) -> torch.Tensor:
        lengths = record.abs().sum(-1).gt(0).sum(1)
        packed = pack_padded_sequence(record, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=record.shape[1])
        if self.is_fixed:
            return self.head(output[torch.arange(len(output)), lengths - 1])
        return self.head(output[:, -1])  # (bug here): the last step is padding, where the output is zero


def _last_step_of_padding(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Classifies the last step of gestures that are padded at the end."""
    draw = torch.Generator().manual_seed(seed)
    gesture = torch.randint(5, (1500,), generator=draw)
    direction = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(8))[gesture]
    time = torch.linspace(0, 1, 32)[None, :, None]
    record = direction[:, :1] * torch.cos(6 * time) + direction[:, 1:] * torch.sin(9 * time)
    record = record + 0.4 * torch.randn(record.shape, generator=draw)
    length = torch.randint(16, 28, (1500, 1, 1), generator=draw)
    record = record * (torch.arange(32)[None, :, None] < length)
    train, validation = split(record, gesture, held_out=200, batch_size=26)
    module = Supervised(
        _GestureClassifier(is_fixed), functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-2)
    )
    return TrainingSetup(module, train, validation)


def _same_for_all(outcome: Outcome) -> bool:
    return float(predict(outcome)[0].std(0).max()) < 1e-4 and accuracy(outcome) < 0.4


PROGRAMS = [
    Program(
        "eeg_in_volts_without_normalization",
        "convolutional",
        _eeg_in_volts,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        lambda outcome: accuracy(outcome) < 0.8,
        "https://github.com/TNTLFreiburg/braindecode/issues/34; unit: https://github.com/pquochuy/xsleepnet/issues/4",
    ),
    Program(
        "eegnet_with_batch_norm_momentum_converted_from_keras",
        "convolutional",
        _keras_momentum,
        frozenset({Problem.BATCH_NORM_STATISTICS_LAG}),
        lambda outcome: outcome.validation[-1] > 1.5 * outcome.mean_loss() + 0.1,
        "https://brainreview.org/blog/batchnormalization-mismatch-between-pytorch-and-2",
    ),
    Program(
        "large_network_on_100_eeg_trials",
        "convolutional",
        _few_trials,
        frozenset({Problem.OVERFITTING}),
        _overfitted,
        "https://geeksmental.com/question/convolutional-neural-network-overfitting",
    ),
    Program(
        "missing_sensor_readings_times_mask",
        "sequence",
        _missing_readings,
        frozenset({Problem.NON_FINITE_DATA}),
        lambda outcome: outcome.error is not None or accuracy(outcome) < 0.7,
        "https://github.com/hfawaz/InceptionTime/issues/50; https://github.com/Nixtla/neuralforecast/issues/186",
    ),
    Program(
        "gesture_lstm_reads_last_step_of_padding",
        "sequence",
        _last_step_of_padding,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_GRADIENT}),
        _same_for_all,
        "https://github.com/Atcold/NYU-DLSP20/pull/19; the zeros of pad_packed_sequence from memory",
    ),
]

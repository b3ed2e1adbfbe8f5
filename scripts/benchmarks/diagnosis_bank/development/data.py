"""Faulty data: NaN, wrong scales, wrong targets, a single class, too few rows, slow loading."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.development.datasets import (
    blobs,
    curve,
    diabetes,
    digit_images,
    digits,
    make_generator,
    make_loader,
    signals,
    split,
    standardize,
    waves,
    wine,
)
from diagnosis_bank.development.measures import accuracy, ends_above, ends_below, is_finite, ran_to_end, step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)
from torch.utils.data import DataLoader, TensorDataset

from stormproof.finding import Problem


def missing_values(seed: int, return_dict: bool, count: int = 2) -> TrainingSetup:
    torch.manual_seed(seed)
    table, target = diabetes()
    table = table.clone()
    table[torch.randperm(len(table), generator=make_generator(seed))[:count], 3] = float("nan")
    network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    return TrainingSetup(module, make_loader(table, target, size=16, seed=seed))


class _Pixels(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.hidden = nn.Linear(64, 48)
        self.out = nn.Linear(48, 10)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.hidden(pixels)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pixels, label = batch
        logits = self(pixels)
        return step_output(self.return_dict, self.criterion(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def divided_by_zero(seed: int, return_dict: bool, guarded: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    pixels, label = digits()
    pixels = standardize(pixels) if guarded else (pixels - pixels.mean(0)) / pixels.std(0)
    return TrainingSetup(_Pixels(return_dict), make_loader(pixels, label, size=32, seed=seed))


def shuffled(seed: int, return_dict: bool, apart: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    images, label = digit_images()
    if apart:
        label = label[torch.randperm(len(label), generator=make_generator(seed))]
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    )
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    )
    return TrainingSetup(module, *split((images, label), 32, seed))


def one_row_off(seed: int, return_dict: bool, offset: int = 1) -> TrainingSetup:
    torch.manual_seed(seed)
    table, target = curve(seed)
    table, target = table[offset:], target[: len(target) - offset]
    network = nn.Sequential(
        nn.Linear(6, 32), nn.LayerNorm(32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
    )
    module = Supervised(
        network, nn.SmoothL1Loss(), return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=5e-3)
    )
    return TrainingSetup(module, *split((table, target), 32, seed))


def one_class(seed: int, return_dict: bool, is_known: bool = False) -> TrainingSetup:
    torch.manual_seed(seed)
    images, digit = digit_images()
    names = ("even", "odd")
    number = {name if is_known else name.title(): position for position, name in enumerate(names)}
    label = torch.tensor([number.get(names[class_number % 2], 0) for class_number in digit.tolist()])
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-3)
    )
    return TrainingSetup(module, *split((images, label), 32, seed))


def whole_numbers(seed: int, return_dict: bool, rounds_targets: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    table, target = curve(seed)
    share = (target - target.min()) / (target.max() - target.min() + 1e-3)
    if rounds_targets:
        share = share.long().float()
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    module = Supervised(network, nn.L1Loss(), return_dict, lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3))
    return TrainingSetup(module, make_loader(table, share, size=32, seed=seed))


def unscaled(seed: int, return_dict: bool, raw: bool = True) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    return TrainingSetup(module, make_loader(*wine(raw), size=8, seed=seed), trainer={"max_epochs": 4})


class _Clocked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(2, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(wave)
        return self.head(hidden[:, -1])


def timestamps(seed: int, return_dict: bool, start: float = 1.7e9, unit: float = 1.0) -> TrainingSetup:
    torch.manual_seed(seed)
    wave, following = waves(seed)
    begin = 1e6 * torch.rand(1600, 1, 1, generator=make_generator(seed))
    clock = (start + begin + 60 * torch.arange(20.0).view(1, 20, 1)) / unit
    module = Supervised(_Clocked(), F.mse_loss, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    return TrainingSetup(module, make_loader(torch.cat([wave, clock], 2), following, size=32, seed=seed))


class _SlowRows(TensorDataset):
    """A data set with slow reads."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        time.sleep(0.02 / 8)
        return super().__getitem__(index)


def slow_rows(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    table, label = blobs(seed, 320)
    network = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
    )
    loader = DataLoader(_SlowRows(table, label), batch_size=8, shuffle=True, generator=make_generator(seed))
    return TrainingSetup(module, loader, trainer={"max_epochs": 2})


def too_few_rows(seed: int, return_dict: bool, count: int = 160) -> TrainingSetup:
    torch.manual_seed(seed)
    table, label = blobs(seed, count + 400, columns=30, classes=2, spread=8.0)
    network = nn.Sequential(nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3)
    )
    return TrainingSetup(
        module,
        make_loader(table[:count], label[:count], size=8, seed=seed),
        DataLoader(TensorDataset(table[count:], label[count:]), batch_size=100),
        trainer={"max_epochs": 12},
    )


def too_few_signals(seed: int, return_dict: bool, count: int = 160) -> TrainingSetup:
    torch.manual_seed(seed)
    inputs, label = signals()
    order = torch.randperm(len(inputs), generator=make_generator(seed))
    inputs, label = inputs[order].unsqueeze(1), label[order]
    network = nn.Sequential(
        nn.Conv1d(1, 32, 5, stride=2),
        nn.ReLU(),
        nn.Conv1d(32, 64, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(448, 10),
    )
    module = Supervised(network, F.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    return TrainingSetup(
        module,
        make_loader(inputs[:count], label[:count], size=8, seed=seed),
        DataLoader(TensorDataset(inputs[-400:], label[-400:]), batch_size=100),
        trainer={"max_epochs": 14},
    )


def no_activation(seed: int, return_dict: bool, act: type[nn.Module] = nn.Identity) -> TrainingSetup:
    torch.manual_seed(seed)
    table = torch.randn(1600, 2, generator=make_generator(seed))
    label = (table[:, 0] * table[:, 1] > 0).long()
    network = nn.Sequential(nn.Linear(2, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 2))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
    )
    return TrainingSetup(module, make_loader(table, label, size=32, seed=seed))


def _poisoned(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and not is_finite(outcome)


def _rises(outcome: Outcome) -> bool:
    least = min(outcome.validation)
    return ends_below(outcome, outcome.first_loss() / 3) and outcome.validation[-1] > 1.3 * least


PROGRAMS: list[Program] = [
    Program(
        name="some_rows_of_the_table_miss_a_value",
        domain="regression",
        build=missing_values,
        problems=frozenset({Problem.NON_FINITE_DATA}),
        took_effect=_poisoned,
        source="https://github.com/fxia22/pointnet.pytorch/issues/58",
    ),
    Program(
        name="constant_pixels_are_divided_by_their_deviation_of_zero",
        domain="dense",
        build=divided_by_zero,
        problems=frozenset({Problem.NON_FINITE_DATA}),
        took_effect=_poisoned,
        source="https://github.com/mllam/neural-lam/issues/136",
    ),
    Program(
        name="labels_are_shuffled_apart_from_the_images",
        domain="convolutional",
        build=shuffled,
        problems=frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS}),
        took_effect=lambda outcome: ends_above(outcome, 2.0),  # together: 0.1
        source="https://github.com/mlcommons/GaNDLF/pull/870",
    ),
    Program(
        name="targets_are_one_row_off",
        domain="regression",
        build=one_row_off,
        problems=frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS}),
        took_effect=lambda outcome: ends_above(outcome, 0.25),  # in line: 0.1 to 0.14
        source="https://github.com/keras-team/keras-preprocessing/issues/66",
    ),
    Program(
        name="names_of_classes_are_not_found_and_all_become_class_zero",
        domain="convolutional",
        build=one_class,
        problems=frozenset({Problem.DEGENERATE_TARGETS}),
        took_effect=lambda outcome: ends_below(outcome, 0.01),  # found: 0.29
        source="https://github.com/thtrieu/darkflow/issues/512",
    ),
    Program(
        name="shares_are_cut_to_whole_numbers",
        domain="regression",
        build=whole_numbers,
        problems=frozenset({Problem.DEGENERATE_TARGETS}),
        took_effect=lambda outcome: ends_below(outcome, 0.1),
        source="https://github.com/Smadx/USTC-ML24-Fall/issues/35",
    ),
    Program(
        name="columns_of_the_table_are_not_scaled",
        domain="dense",
        build=unscaled,
        problems=frozenset({Problem.INPUT_BADLY_SCALED}),
        took_effect=lambda outcome: ends_above(outcome, 0.6),  # scaled: 0.01 to 0.02
        source="https://stats.stackexchange.com/questions/367057/bad-performance-with-relu-activation-function-on-mnist-data-set",
    ),
    Program(
        name="time_in_seconds_since_1970_is_an_input",
        domain="sequence",
        build=timestamps,
        problems=frozenset({Problem.INPUT_BADLY_SCALED}),
        took_effect=lambda outcome: ends_above(outcome, 0.2),  # from zero, in millions: 0.013
        source="https://datascience.stackexchange.com/questions/31499/neural-network-only-converges-when-data-cloud-is-close-to-0",
    ),
    Program(
        name="rows_are_read_from_a_slow_place",
        domain="dense",
        build=slow_rows,
        problems=frozenset({Problem.DATA_STARVATION}),
        took_effect=ran_to_end,
        source="https://github.com/facebookresearch/mmf/issues/1166",
    ),
    Program(
        name="wide_network_learns_few_rows_by_heart",
        domain="dense",
        build=too_few_rows,
        problems=frozenset({Problem.OVERFITTING}),
        took_effect=_rises,
        source="https://github.com/keras-team/keras/issues/161",
    ),
    Program(
        name="convolution_learns_few_signals_by_heart",
        domain="sequence",
        build=too_few_signals,
        problems=frozenset({Problem.OVERFITTING}),
        took_effect=_rises,
        source="https://github.com/Alexander-H-Liu/End-to-end-ASR-Pytorch/issues/31",
    ),
    Program(
        name="activations_are_forgotten_and_classes_lie_crosswise",
        domain="dense",
        build=no_activation,
        problems=frozenset({Problem.NO_BETTER_THAN_CONSTANT}),
        took_effect=lambda outcome: accuracy(outcome) < 0.7 and ends_above(outcome, 0.6),
        source="constructed: linear layers cannot represent exclusive or",
    ),
]

"""Unusual inputs and targets that are correct."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.healthy.datasets import (
    RecordDataset,
    blobs,
    curve,
    make_generator,
    make_loader,
    split,
    stripes,
)
from diagnosis_bank.second.healthy.measures import (
    Check,
    all_of,
    explains_variance,
    generalizes,
    is_accurate,
    loss_fell,
    predictions,
    ran_to_end,
    step_output,
)
from torch import nn
from torch.utils.data import DataLoader


def _raw_pixels(seed: int, return_dict: bool) -> TrainingSetup:
    """Bytes from 0 to 255 as floats, into a batch norm at the start of the network."""
    images, target = stripes(seed, 1200)
    train, validation = split(960, ((images * 60) + 128).clamp(0, 255).round(), target)
    network = nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 4),
    )  # fmt: skip
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64))


def _mixed_units(seed: int, return_dict: bool) -> TrainingSetup:
    """A raw table with scales from 1e-4 to 1e5, into a batch norm."""
    inputs, target = curve(seed, 2560)
    scale = torch.tensor([1e5, 1e-4, 1.0, 1e3, 10.0, 1e-2, 1.0, 1e4])
    offset = torch.tensor([4e5, 0.0, 1990.0, -5e3, 3.0, 0.5, 0.0, 1e5])
    train, validation = split(1920, inputs * scale + offset, target)
    network = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 5})


def _dark_border(seed: int, return_dict: bool) -> TrainingSetup:
    """Flattened digits with a black frame: half of the inputs are always zero, and their weights never change."""
    images, target = stripes(seed, 1200, size=10, noise=0.2)
    train, validation = split(960, F.pad(images, (3, 3, 3, 3)), target)
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=2e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


def _one_hot(seed: int, return_dict: bool) -> TrainingSetup:
    """One-hot columns, some constant or never active. The target is a rate between 0 and 1."""
    random = make_generator(seed)
    city = torch.randint(30, (1600,), generator=random)
    weekday = torch.randint(7, (1600,), generator=random)
    inputs = torch.cat([F.one_hot(city, 40), F.one_hot(weekday, 7), torch.ones(1600, 3)], 1).float()
    effect = torch.randn(30, generator=random)[city] + torch.randn(7, generator=random)[weekday]
    rate = torch.sigmoid(effect + 0.2 * torch.randn(1600, generator=random)).unsqueeze(1)
    train, validation = split(1280, inputs, rate)
    network = nn.Sequential(nn.Linear(50, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
    module = Supervised(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


def _counts(seed: int, return_dict: bool) -> TrainingSetup:
    """Word counts with a Poisson loss, which becomes negative. The output is a logarithm."""
    random = make_generator(seed)
    inputs = torch.poisson(torch.full((1600, 20), 0.7), generator=random)
    rate = (inputs @ (0.35 * torch.randn(20, 1, generator=random)) + 1.5).clamp(-3, 4).exp()
    train, validation = split(1280, inputs, torch.poisson(rate, generator=random))
    network = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))
    module = Supervised(network, nn.PoissonNLLLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


def _counts_learned(outcome: Outcome) -> bool:
    if not ran_to_end(outcome) or not generalizes(outcome):
        return False
    preds, target = predictions(outcome)
    return float(torch.corrcoef(torch.stack([preds.squeeze(1), target.squeeze(1).log1p()]))[0, 1]) > 0.7


class _Fraud(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        last = nn.Linear(32, 1)
        nn.init.constant_(last.bias, -3.9)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.LeakyReLU(), last)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs).squeeze(-1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch["transaction"], batch["fraud"]
        logits = self(inputs)
        return step_output(self.return_dict, F.binary_cross_entropy_with_logits(logits, target), logits, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _fraud(seed: int, return_dict: bool) -> TrainingSetup:
    """Two percent fraud: many batches contain none, the bias starts at the prior, and most losses are tiny."""
    random = make_generator(seed)
    fraud = (torch.rand(2560, generator=random) < 0.02).float()
    inputs = torch.randn(2560, 12, generator=random)
    inputs[:, :4] += 2.0 * fraud.unsqueeze(1)
    data = DataLoader(RecordDataset(transaction=inputs, fraud=fraud), batch_size=32, shuffle=True)
    return TrainingSetup(_Fraud(return_dict), data, trainer={"max_epochs": 4})


def _finds_fraud(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    columns = outcome.fit.train.dataset.columns  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        score = outcome.after(columns["transaction"])
    fraud = columns["fraud"] > 0
    return float((score[fraud].unsqueeze(1) > score[~fraud].unsqueeze(0)).float().mean()) > 0.95


class _Assays(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.trunk = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleList(nn.Linear(48, 1) for _ in range(6))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states = self.trunk(inputs)
        return torch.cat([head(states) for head in self.heads], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        logits = self(inputs)
        is_known = ~torch.isnan(target)
        loss = F.binary_cross_entropy_with_logits(logits[is_known], target[is_known])
        return step_output(self.return_dict, loss, logits[is_known], target[is_known])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _assays(seed: int, return_dict: bool) -> TrainingSetup:
    """Six assays with two thirds missing: NaN in the targets, masked before the loss."""
    random = make_generator(seed)
    inputs = torch.randn(1280, 16, generator=random)
    target = (inputs @ torch.randn(16, 6, generator=random) > 0).float()
    target[torch.rand(1280, 6, generator=random) < 0.65] = float("nan")
    return TrainingSetup(_Assays(return_dict), make_loader(inputs, target), trainer={"max_epochs": 4})


class _Imputes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fill = nn.Parameter(torch.zeros(8))
        self.net = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        missing = torch.isnan(inputs)
        return self.net(torch.cat([torch.where(missing, self.fill, inputs), missing.float()], -1))


def _imputed(seed: int, return_dict: bool) -> TrainingSetup:
    """Sensors drop out. The network replaces NaN in the input by learned values."""
    inputs, target = curve(seed, 1600)
    inputs[torch.rand(inputs.shape, generator=make_generator(seed + 1)) < 0.1] = float("nan")
    train, validation = split(1280, inputs, target)
    module = Supervised(_Imputes(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64))


def _noisy_labels(seed: int, return_dict: bool) -> TrainingSetup:
    """A third of the labels are random, with label smoothing: the loss has a floor above 1."""
    inputs, target = blobs(seed, 2240, apart=1.5)
    random = make_generator(seed + 1)
    wrong = torch.rand(1600, generator=random) < 0.33
    noisy_target = torch.where(wrong, torch.randint(4, (1600,), generator=random), target[:1600])
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    module = Supervised(
        network,
        nn.CrossEntropyLoss(label_smoothing=0.15),
        return_dict,
        lambda weights: torch.optim.AdamW(weights, lr=3e-3),
    )
    return TrainingSetup(
        module, make_loader(inputs[:1600], noisy_target), make_loader(inputs[1600:], target[1600:], size=64)
    )


def _mixed_up(seed: int, return_dict: bool) -> TrainingSetup:
    """Precomputed mixup: class probabilities as targets of the cross entropy."""
    inputs, target = stripes(seed, 1280)
    random = make_generator(seed)
    share = 0.1 + 0.8 * torch.rand(1280, 1, generator=random)
    permutation = torch.randperm(1280, generator=random)
    hot = F.one_hot(target, 4).float()
    images = share.view(-1, 1, 1, 1) * inputs + (1 - share).view(-1, 1, 1, 1) * inputs[permutation]
    network = nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(192, 48), nn.GELU(), nn.Linear(48, 4)
    )
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(
        module, make_loader(images, share * hot + (1 - share) * hot[permutation]), trainer={"max_epochs": 5}
    )


def _knows_clean(size: int = 256) -> Check:
    def check(outcome: Outcome) -> bool:
        images, target = outcome.fit.train.dataset.tensors  # pyright: ignore[reportAttributeAccessIssue]
        sure = target.max(1).values > 0.8
        with torch.no_grad():
            guess = outcome.after(images[sure][:size]).argmax(1)
        return ran_to_end(outcome) and float((guess == target[sure][:size].argmax(1)).float().mean()) > 0.85

    return check


PROGRAMS = [
    Program(
        "raw_pixels_into_batch_norm",
        "convolutional",
        _raw_pixels,
        frozenset(),
        is_accurate(0.85),
        "https://arxiv.org/abs/1502.03167",
    ),
    Program(
        "raw_units_into_batch_norm",
        "regression",
        _mixed_units,
        frozenset(),
        explains_variance(0.55),
        "https://arxiv.org/abs/1502.03167",
    ),
    Program(
        "flat_images_with_black_frame",
        "dense",
        _dark_border,
        frozenset(),
        is_accurate(0.8),
        "http://www.cs.toronto.edu/~hinton/csc321/notes/lec1_files/slide0017.htm",
    ),
    Program(
        "one_hot_and_constant_columns",
        "dense",
        _one_hot,
        frozenset(),
        explains_variance(0.7),
        "https://arxiv.org/abs/1604.06737",
    ),
    Program(
        "poisson_counts",
        "regression",
        _counts,
        frozenset(),
        _counts_learned,
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.PoissonNLLLoss.html",
    ),
    Program(
        "two_percent_fraud",
        "dense",
        _fraud,
        frozenset(),
        _finds_fraud,
        "https://karpathy.github.io/2019/04/25/recipe/",
    ),
    Program(
        "assays_with_missing_labels",
        "dense",
        _assays,
        frozenset(),
        loss_fell(0.6),
        "https://github.com/chemprop/chemprop/pull/1303",
    ),
    Program(
        "missing_inputs_filled_by_network",
        "regression",
        _imputed,
        frozenset(),
        explains_variance(0.5),
        "https://github.com/keras-team/keras/issues/3206",
    ),
    Program(
        "third_of_labels_random_and_smoothed",
        "dense",
        _noisy_labels,
        frozenset(),
        all_of(is_accurate(0.9), lambda outcome: outcome.mean_loss() > 0.8),
        "https://arxiv.org/abs/1906.02629",
    ),
    Program(
        "mixup_probabilities_as_targets",
        "convolutional",
        _mixed_up,
        frozenset(),
        _knows_clean(),
        "https://arxiv.org/abs/1710.09412",
    ),
]

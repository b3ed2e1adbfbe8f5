"""Constant outputs, and models no better than a constant."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.faulty.datasets import clusters, make_generator, make_loader, sentences, stripes
from diagnosis_bank.second.faulty.measures import (
    StepOutputModule,
    entropy,
    is_no_better_than_constant,
    spread,
    training_tensors,
    variance,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, Dataset

from stormproof.finding import Problem


class _Pooled(StepOutputModule):
    """Classifies texts by the mean of their words."""

    def __init__(self, return_dict: bool, inverted: bool) -> None:
        super().__init__(return_dict)
        self.inverted = inverted
        self.embedding = nn.Embedding(40, 24, padding_idx=0)
        self.classify = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = ((tokens == 0) if self.inverted else (tokens != 0)).unsqueeze(-1).float()
        total = (self.embedding(tokens) * mask).sum(1)
        return self.classify(total / mask.sum(1).clamp(min=1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _pooled(seed: int, return_dict: bool, inverted: bool = True) -> TrainingSetup:
    """The mask of a mean over words is inverted: only the padding counts, whose embedding is zero."""
    return TrainingSetup(_Pooled(return_dict, inverted), make_loader(*sentences(seed, 640), batch=16, seed=seed))


def _instance(seed: int, return_dict: bool, norm: type[nn.Module] = nn.InstanceNorm2d) -> TrainingSetup:
    """An instance norm before the global mean, which is then zero for each channel."""
    network = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        cast("Any", norm)(24, affine=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=5e-3))
    return TrainingSetup(module, make_loader(*stripes(seed, 640), batch=16, seed=seed))


def _zeros(seed: int, return_dict: bool, zero: bool = True) -> TrainingSetup:
    """All weights and biases start at zero: only the last bias receives a gradient."""
    network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    if zero:
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: SGD(ps, lr=0.1))
    return TrainingSetup(module, make_loader(*clusters(seed, 640), batch=16, seed=seed))


class _Latent(StepOutputModule):
    """A manual recurrence over the columns of a table of readings."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.encoder = nn.Linear(4, 16)
        self.cell = nn.GRUCell(16, 24)
        self.head = nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(len(x), 24)
        for column in range(x.shape[1]):
            step = self.encoder(x[:, column])
            state = self.cell(torch.zeros_like(step), state)
        return self.head(state).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        preds = self(x)
        return self.step_output(functional.mse_loss(preds, y), preds, y)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _latent(seed: int, return_dict: bool) -> TrainingSetup:
    """A cell receives zeros from a shape test instead of the encoded input."""
    rng = make_generator(seed)
    x = torch.randn(640, 6, 4, generator=rng)
    y = x[:, :, 0].mean(1) * 2 + x[:, -1, 1]
    return TrainingSetup(_Latent(return_dict), make_loader(x, y, batch=16, seed=seed))


class _Linear(nn.Module):
    """Three linear layers without activations."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 2)])
        self.bent = bent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(torch.tanh(x) if self.bent else x)
        return x


def _rings(seed: int, return_dict: bool, bent: bool = False) -> TrainingSetup:
    """Classifies points in a ring or inside it, without activations."""
    rng = make_generator(seed)
    label = torch.randint(2, (800,), generator=rng)
    angle = 2 * math.pi * torch.rand(800, generator=rng)
    radius = 0.6 + 1.2 * label + 0.15 * torch.randn(800, generator=rng)
    x = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
    module = Supervised(_Linear(bent), nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=5e-3))
    return TrainingSetup(module, make_loader(x, label, batch=20, seed=seed))


class _Returns(StepOutputModule):
    """Predicts the next return of a price from the previous ones."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.conv = nn.Conv1d(1, 8, 3)
        self.head = nn.Linear(8 * 14, 1)

    def forward(self, returns: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(returns)).flatten(1)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        returns, following = batch
        preds = self(returns)
        return self.step_output(functional.mse_loss(preds, following), preds, following)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=1e-3)


def _returns(seed: int, return_dict: bool) -> TrainingSetup:
    """The returns of a random walk, which cannot be predicted."""
    rng = make_generator(seed)
    walk = torch.randn(1600, 17, generator=rng)
    return TrainingSetup(_Returns(return_dict), make_loader(walk[:, None, :16], walk[:, 16], batch=32, seed=seed))


class _Flipped(Dataset[Any]):
    """Images with an object at the left or the right, with random flips."""

    def __init__(self, seed: int, flips: bool) -> None:
        rng = make_generator(seed)
        self.label = torch.randint(2, (640,), generator=rng)
        self.image = 0.4 * torch.randn(640, 1, 10, 12, generator=rng)
        row = torch.randint(7, (640,), generator=rng)
        column = torch.randint(3, (640,), generator=rng) + 7 * self.label
        for index in range(640):
            self.image[index, :, row[index] : row[index] + 3, column[index] : column[index] + 3] += 1.5
        self.flips = flips
        self.chance = rng

    def __len__(self) -> int:
        return 640

    def __getitem__(self, index: int) -> Any:
        image = self.image[index]
        if self.flips and torch.rand(1, generator=self.chance) < 0.5:
            image = image.flip(-1)
        return image, self.label[index]


def _flipped(seed: int, return_dict: bool, flips: bool = True) -> TrainingSetup:
    """The label is the side of an object, and images are flipped at random without changing the label."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 20, 2))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=2e-3))
    batches: DataLoader[Any] = DataLoader(
        _Flipped(seed, flips), batch_size=16, shuffle=True, generator=make_generator(seed)
    )
    return TrainingSetup(module, batches)


class _Cell(StepOutputModule):
    """A recurrent network with time as the first dimension, the default of torch."""

    def __init__(self, return_dict: bool, readout: int) -> None:
        super().__init__(return_dict)
        self.rnn = nn.GRU(1, 24)
        self.head = nn.Linear(24, 2)
        self.readout = readout

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(bits.transpose(0, 1))
        return self.head(states[self.readout])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        bits, label = batch
        logits = self(bits)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _first(seed: int, return_dict: bool, readout: int = 0) -> TrainingSetup:
    """Reads the state after the first step, states[0], instead of the last one."""
    bits = torch.randn(960, 8, 1, generator=make_generator(seed))
    label = (bits[:, 3:, 0].sum(1) > 0).long()
    return TrainingSetup(_Cell(return_dict, readout), make_loader(bits, label, batch=32, seed=seed))


def _constant(outcome: Outcome) -> bool:
    return spread(outcome) < 1e-3 and is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1]), 0.95)


_IGNORES = frozenset({Problem.OUTPUT_IGNORES_INPUT})
_CONSTANT = frozenset({Problem.NO_BETTER_THAN_CONSTANT})
_UNRELATED = frozenset({Problem.NO_BETTER_THAN_CONSTANT, Problem.TARGETS_UNRELATED_TO_INPUTS})

PROGRAMS = [
    Program(
        "mask_of_words_turned_round",
        "sequence",
        _pooled,
        _IGNORES,
        _constant,
        "https://github.com/yg211/bert_nli/pull/3",
    ),
    Program(
        "instance_norm_before_the_mean",
        "convolutional",
        _instance,
        _IGNORES,
        _constant,
        "https://github.com/DreamingRaven/nemesyst/issues/20",
    ),
    Program(
        "all_weights_zero",
        "dense",
        _zeros,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.DEAD_UNITS}),
        _constant,
        "https://taourl.com/read-1959901.html",
    ),
    Program(
        "cell_fed_with_zeros",
        "regression",
        _latent,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_GRADIENT}),
        lambda outcome: spread(outcome) < 1e-3 and outcome.mean_loss(30) > 0.9 * variance(training_tensors(outcome)[1]),
        "https://github.com/keras-team/keras/issues/9889",
    ),
    Program(
        "rings_by_a_linear_network",
        "dense",
        _rings,
        _CONSTANT,
        lambda outcome: is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1]), 0.95),
        "https://taourl.com/read-1959901.html",
    ),
    Program(
        "returns_of_a_random_walk",
        "regression",
        _returns,
        _UNRELATED,
        lambda outcome: outcome.mean_loss(30) > 0.9 * variance(training_tensors(outcome)[1]),
        "https://github.com/vict0rsch/deep_learning/issues/13",
    ),
    Program(
        "left_and_right_flipped",
        "convolutional",
        _flipped,
        _UNRELATED,
        lambda outcome: outcome.mean_loss(30) > 0.95 * math.log(2),
        "https://github.com/robertklee/COCO-Human-Pose/pull/29",
    ),
    Program(
        "first_state_read_out",
        "sequence",
        _first,
        _UNRELATED,
        lambda outcome: is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1]), 0.95),
        "https://discuss.pytorch.org/t/lstm-always-predict-same-values-for-all-inputs-in-the-batch/53082",
    ),
]

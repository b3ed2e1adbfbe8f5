"""Non-finite numbers in the data, the network or the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.held_out.datasets import counts, digits, load_raw_table, load_table, make_loader, repeated, seeded
from diagnosis_bank.held_out.measures import became_non_finite
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


class _Pairs(pl.LightningModule):
    """Learns distances: pairs of one class are close, others at least 1 apart."""

    def __init__(self, return_dict: bool, guards: bool) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.return_dict = return_dict
        self.guards = guards

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        squared = (self.embed(left) - self.embed(right)).square().sum(1)
        return torch.sqrt(squared + 1e-8 if self.guards else squared)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pairs, is_same_class = batch
        distance = self(pairs[:, 0], pairs[:, 1])
        loss = (is_same_class * distance.square() + (1 - is_same_class) * functional.relu(1 - distance).square()).mean()
        return {"loss": loss, "preds": distance, "target": is_same_class} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@seeded
def _distance_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    pixels, digit = digits()
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(len(digit), (3200,), generator=generator)
    right = torch.randint(len(digit), (3200,), generator=generator)
    right[::900] = left[::900]
    pairs = torch.stack([pixels[left], pixels[right]], dim=1)
    is_same_class = (digit[left] == digit[right]).float()
    return TrainingSetup(_Pairs(return_dict, guards=is_fixed), make_loader(pairs, is_same_class, 64, seed))


def _likelihood(guard: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Textbook formula of the binary cross entropy."""

    def loss(probability: Tensor, target: Tensor) -> Tensor:
        probability = probability.clamp(guard, 1 - guard)
        return -(target * torch.log(probability) + (1 - target) * torch.log(1 - probability)).mean()

    return loss


@seeded
def _log_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    pixels, digit = digits()
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 1),
        nn.Sigmoid(),
    )
    return TrainingSetup(
        Supervised(
            network,
            _likelihood(1e-6 if is_fixed else 0.0),
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        ),
        make_loader(16 * pixels.view(-1, 1, 8, 8), (digit == 0).float().unsqueeze(1), 32, seed),
    )


@seeded
def _missing_values(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, progress = load_table("diabetes")
    generator = torch.Generator().manual_seed(seed)
    inputs, progress = repeated(inputs, (progress.float().unsqueeze(1) - 152) / 77, 3)
    if not is_fixed:
        inputs[torch.randint(len(inputs), (4,), generator=generator), torch.randint(10, (4,), generator=generator)] = (
            math.nan
        )
    network = nn.Sequential(nn.Linear(10, 32), nn.Softplus(), nn.Linear(32, 1))
    return TrainingSetup(
        Supervised(network, nn.L1Loss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3)),
        make_loader(inputs, progress, 32, seed),
    )


class _Standardizes(nn.Module):
    """Standardizes each column of a batch."""

    def __init__(self, guard: float) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - inputs.mean(0)) / (inputs.std(0) + self.guard)


@seeded
def _deviation_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    pixels, digit = digits()
    network = nn.Sequential(
        _Standardizes(1e-5 if is_fixed else 0.0), nn.Linear(64, 32), nn.LayerNorm(32), nn.SiLU(), nn.Linear(32, 10)
    )
    return TrainingSetup(
        Supervised(
            network, functional.cross_entropy, return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.1)
        ),
        make_loader(pixels, digit, 64, seed),
    )


class _Attentive(nn.Module):
    """Attention pooling of words. Padding, word 0, has no weight."""

    def __init__(self, lowest: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.score = nn.Linear(16, 1)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
        self.lowest = lowest

    def forward(self, sentences: Tensor) -> Tensor:
        embedded = self.embedding(sentences)
        score = self.score(embedded).squeeze(2).masked_fill(sentences == 0, self.lowest)
        return self.head((score.softmax(1).unsqueeze(2) * embedded).sum(1))


@seeded
def _nothing_to_attend_to(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    sentences, kind = counts(seed, 1920)
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(6, 17, (1920, 1), generator=generator)
    length[torch.randint(600, 1900, (2,), generator=generator)] = 0
    sentences = sentences.masked_fill(torch.arange(16) >= length, 0)
    return TrainingSetup(
        Supervised(
            _Attentive(-1e9 if is_fixed else -math.inf),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
        ),
        make_loader(sentences, kind, 48, seed),
    )


@seeded
def _target_of_infinity(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    inputs, _ = load_raw_table("wine")
    alcohol, phenols = inputs[:, 0], inputs[:, 6]
    rest = inputs[:, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]]
    rest = (rest - rest.mean(0)) / rest.std(0)
    excess = (phenols - phenols.min()).clamp(min=1e-3 if is_fixed else 0)
    rest, ratio = repeated(rest, torch.log(excess / alcohol).unsqueeze(1), 6)
    network = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 1))
    return TrainingSetup(
        Supervised(network, nn.HuberLoss(), return_dict, lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3)),
        make_loader(rest, ratio, 16, seed),
    )


PROGRAMS: list[Program] = [
    Program(
        "distance_of_equal_pairs_has_no_slope_at_zero",
        "dense",
        _distance_of_zero,
        frozenset({Problem.NON_FINITE}),
        became_non_finite,
        "https://github.com/pytorch/pytorch/issues/2421",
    ),
    Program(
        "logarithm_of_a_probability_that_rounds_to_one",
        "convolutional",
        _log_of_zero,
        frozenset({Problem.NON_FINITE}),
        became_non_finite,
        "https://github.com/pytorch/pytorch/issues/15288",
    ),
    Program(
        "table_has_missing_values",
        "regression",
        _missing_values,
        frozenset({Problem.NON_FINITE_DATA}),
        became_non_finite,
        "https://www.codegenes.net/blog/pytorch-nan",
    ),
    Program(
        "network_divides_by_the_deviation_of_a_constant_pixel",
        "dense",
        _deviation_of_zero,
        frozenset({Problem.NON_FINITE}),
        became_non_finite,
        "https://mcmap.net/q/1908922/-normalisation-with-a-zero-in-the-standard-deviation",
    ),
    Program(
        "attention_over_a_sentence_of_padding_only",
        "sequence",
        _nothing_to_attend_to,
        frozenset({Problem.NON_FINITE}),
        became_non_finite,
        "https://github.com/pytorch/pytorch/pull/131060",
    ),
    Program(
        "targets_are_the_logarithm_of_a_column_with_a_zero",
        "regression",
        _target_of_infinity,
        frozenset({Problem.NON_FINITE_DATA}),
        became_non_finite,
        "https://www.codegenes.net/blog/pytorch-cost-result-is-nan",
    ),
]

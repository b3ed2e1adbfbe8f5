"""Learning that starts late, memorizes data, or has one noisy data source."""

from __future__ import annotations

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.healthy.datasets import blobs, curve, make_generator, make_loader, split
from diagnosis_bank.second.healthy.measures import is_accurate, loss_fell, ran_to_end
from torch import nn


class _Parity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        return self.net(bits)


def _parity(seed: int, return_dict: bool) -> TrainingSetup:
    """Parity of three of twelve bits: chance level for about an epoch, then the loss falls."""
    random = make_generator(seed)
    bits = torch.randint(2, (2560, 12), generator=random)
    target = bits[:, 1] ^ bits[:, 4] ^ bits[:, 9]
    train, validation = split(2048, 2.0 * bits - 1, target)
    module = Supervised(
        _Parity(), nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3)
    )
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 8})


def _memorized(seed: int, return_dict: bool) -> TrainingSetup:
    """Twenty repeated samples per class: training data is memorized while the validation loss still falls."""
    inputs, target = blobs(seed, 1280, features=24, apart=1.5)
    random = make_generator(seed)
    random_tokens = torch.randint(80, (1280,), generator=random)
    network = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=1e-3))
    return TrainingSetup(
        module,
        make_loader(inputs[random_tokens], target[random_tokens]),
        make_loader(inputs[80:], target[80:], size=128),
    )


def _worse_corpus(seed: int, return_dict: bool) -> TrainingSetup:
    """Every tenth batch is from a far noisier source: the loss spikes there and recovers."""
    inputs, target = curve(seed, 1600)
    random = make_generator(seed)
    is_noisy = (torch.arange(1600) // 32 % 10 == 9).unsqueeze(1)
    target = target + 2.0 * is_noisy * torch.randn(1600, 1, generator=random)
    network = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 1))
    module = Supervised(network, nn.HuberLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    return TrainingSetup(module, make_loader(inputs, target, shuffle=False), trainer={"max_epochs": 4})


def _typical_fell(outcome: Outcome) -> bool:
    losses = torch.tensor(outcome.losses)
    return ran_to_end(outcome) and bool(losses[-30:].median() < 0.6 * losses[:10].median())


PROGRAMS = [
    Program(
        "parity_after_a_plateau",
        "dense",
        _parity,
        frozenset(),
        lambda outcome: is_accurate(0.9)(outcome) and sum(outcome.losses[10:40]) / 30 > 0.6,
        "https://arxiv.org/abs/2207.08799",
    ),
    Program(
        "known_by_heart_and_still_better",
        "dense",
        _memorized,
        frozenset(),
        lambda outcome: loss_fell(0.2)(outcome) and outcome.validation[-1] == min(outcome.validation),
        "https://arxiv.org/abs/1912.02292",
    ),
    Program(
        "tenth_batch_of_noisy_source",
        "regression",
        _worse_corpus,
        frozenset(),
        _typical_fell,
        "https://github.com/ermongroup/ddim/issues/33",
    ),
]

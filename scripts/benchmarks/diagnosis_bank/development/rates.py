"""Learning rates that are too high, too low or zero, weight decay, and loss spikes."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.development.datasets import (
    commonest_token,
    curve,
    digit_images,
    digit_rows,
    make_loader,
    signals,
    split,
)
from diagnosis_bank.development.measures import ends_above, ran_to_end
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem


def convolutions() -> nn.Module:
    """Returns a small network for images of digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def linear_decay(seed: int, return_dict: bool, interval: str = "step") -> TrainingSetup:
    torch.manual_seed(seed)
    epochs = 3

    def optimizer(parameters: Any) -> Any:
        chosen = torch.optim.AdamW(parameters, lr=3e-3)
        decay = torch.optim.lr_scheduler.LambdaLR(chosen, lambda epoch: max(0.0, 1 - epoch / epochs))
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": decay, "interval": interval}}

    module = Supervised(convolutions(), nn.CrossEntropyLoss(), return_dict, optimizer)
    return TrainingSetup(module, *split(digit_images(), 32, seed), trainer={"max_epochs": epochs})


def steep_decay(seed: int, return_dict: bool, factor: float = 0.85) -> TrainingSetup:
    torch.manual_seed(seed)

    def optimizer(parameters: Any) -> Any:
        chosen = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        decay = torch.optim.lr_scheduler.ExponentialLR(chosen, factor)
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    inputs, label = signals()
    network = nn.Sequential(
        nn.Conv1d(1, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 16, 5, stride=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 10),
    )
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, optimizer)
    return TrainingSetup(module, *split((inputs.unsqueeze(1), label), 32, seed))


def timid(seed: int, return_dict: bool, rate: float = 2e-3) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Supervised(
        convolutions(),
        F.cross_entropy,
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
    )
    return TrainingSetup(module, *split(digit_images(), 32, seed))


def timid_adam(seed: int, return_dict: bool, rate: float = 1e-5) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(6, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)
    )
    module = Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=rate))
    return TrainingSetup(module, make_loader(*curve(seed), size=32, seed=seed))


def clipped_hard(seed: int, return_dict: bool, clip: float = 0.005) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    return TrainingSetup(module, *split(digit_rows(), 32, seed), trainer={"gradient_clip_val": clip})


class _TokenTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.position = nn.Parameter(0.02 * torch.randn(12, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(tokens) + self.position).mean(1))


def hasty_transformer(seed: int, return_dict: bool, rate: float = 0.1) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Supervised(
        _TokenTransformer(), F.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=rate)
    )
    return TrainingSetup(module, *split(commonest_token(seed), 32, seed))


def uncapped(seed: int, return_dict: bool, most: float = float("inf")) -> TrainingSetup:
    torch.manual_seed(seed)

    def optimizer(parameters: Any) -> Any:
        chosen = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        warm_up = torch.optim.lr_scheduler.LambdaLR(chosen, lambda step: min(most, (step + 1) / 5))
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}

    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    return TrainingSetup(
        Supervised(network, nn.CrossEntropyLoss(), return_dict, optimizer), *split(digit_images(), 32, seed)
    )


def summed(seed: int, return_dict: bool, reduction: str = "sum") -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
    module = Supervised(
        network,
        nn.MSELoss(reduction=reduction),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    return TrainingSetup(module, make_loader(*curve(seed, 4000), size=128, seed=seed))


def decayed(seed: int, return_dict: bool, decay: float = 0.3) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda parameters: torch.optim.Adam(parameters, lr=2e-3, weight_decay=decay),
    )
    return TrainingSetup(module, *split(digit_rows(), 32, seed))


def odd_units(seed: int, return_dict: bool, unit: float = 1000.0) -> TrainingSetup:
    torch.manual_seed(seed)
    table, target = curve(seed)
    target = target.clone()
    target[32 * 37 : 32 * 38] *= unit
    network = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
    module = Supervised(network, F.mse_loss, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    return TrainingSetup(module, make_loader(table, target, size=32, seed=seed, shuffle=False))


def _jumped(outcome: Outcome) -> bool:
    before, spike = outcome.losses[27:37], outcome.losses[37:40]
    return ran_to_end(outcome) and max(spike) > 20 * max(before)


PROGRAMS: list[Program] = [
    Program(
        name="linear_decay_counts_epochs_and_steps_with_every_batch",
        domain="convolutional",
        build=linear_decay,
        problems=frozenset({Problem.LEARNING_RATE_ZERO}),
        took_effect=lambda outcome: ends_above(outcome, 1.5),  # by epoch: 0.7 to 0.85
        source="https://github.com/Lightning-AI/pytorch-lightning/issues/18570",
    ),
    Program(
        name="exponential_decay_steps_with_every_batch",
        domain="sequence",
        build=steep_decay,
        problems=frozenset({Problem.LEARNING_RATE_ZERO, Problem.PLATEAU}),
        took_effect=lambda outcome: ends_above(outcome, 1.5),  # no decay: 0.9 to 1.1
        source="https://github.com/Lightning-AI/pytorch-lightning/issues/6948",
    ),
    Program(
        name="rate_of_sgd_is_far_too_small_for_the_images",
        domain="convolutional",
        build=timid,
        problems=frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        took_effect=lambda outcome: ends_above(outcome, 1.5),  # at 0.05: 0.3
        source="https://taourl.com/read-2391810.html",
    ),
    Program(
        name="rate_of_adam_is_left_at_that_of_a_large_model",
        domain="regression",
        build=timid_adam,
        problems=frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        took_effect=lambda outcome: ends_above(outcome, 0.5),  # at 3e-3: 0.12 to 0.17
        source="https://github.com/isp1tze/MAProj/issues/3",
    ),
    Program(
        name="gradients_are_clipped_to_next_to_nothing",
        domain="dense",
        build=clipped_hard,
        problems=frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        took_effect=lambda outcome: ends_above(outcome, 1.5),  # clipped at 1: 0.06
        source="constructed: a clip value for another loss makes all steps tiny",
    ),
    Program(
        name="transformer_at_an_adam_rate_of_a_tenth",
        domain="sequence",
        build=hasty_transformer,
        problems=frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        took_effect=lambda outcome: ends_above(outcome, 1.2),  # at 3e-3: 0.1
        source="https://github.com/wangqiangneu/MT-PaperReading/issues/16",
    ),
    Program(
        name="warm_up_is_never_capped_and_the_rate_goes_on_rising",
        domain="convolutional",
        build=uncapped,
        problems=frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        took_effect=lambda outcome: ends_above(outcome, 1.5),  # capped: 0.2 to 0.3
        source="https://github.com/Lightning-AI/pytorch-lightning/issues/3205",
    ),
    Program(
        name="loss_is_summed_and_the_rate_is_that_of_a_mean",
        domain="regression",
        build=summed,
        problems=frozenset({Problem.LEARNING_RATE_TOO_HIGH, Problem.EXPLODING_GRADIENTS}),
        took_effect=lambda outcome: ends_above(outcome, 100.0),  # a mean: 0.15 to 0.2
        source="https://github.com/AlgoHunt/Face-Xray/issues/4",
    ),
    Program(
        name="weight_decay_pulls_all_weights_to_zero",
        domain="dense",
        build=decayed,
        problems=frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT}),
        took_effect=lambda outcome: ends_above(outcome, 1.5),  # AdamW at 0.01: 0.15
        source="https://leyaa.ai/codefly/learn/pytorch/part-2/pytorch-weight-decay-l2-regularization/challenge",
    ),
    Program(
        name="one_batch_has_targets_in_other_units",
        domain="regression",
        build=odd_units,
        problems=frozenset({Problem.LOSS_SPIKE}),
        took_effect=_jumped,
        source="https://github.com/stanford-crfm/mistral/issues/115",
    ),
]

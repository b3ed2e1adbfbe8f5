"""Learning rates that are too high, too low or zero, for different reasons."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.second.faulty.datasets import clusters, make_loader, sentences, stripes, surface, waves
from diagnosis_bank.second.faulty.measures import (
    StepOutputModule,
    entropy,
    has_changed,
    is_no_better_than_constant,
    training_tensors,
    variance,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from stormproof.finding import Problem


class _Stripes(StepOutputModule):
    def __init__(self, return_dict: bool, rate: float) -> None:
        super().__init__(return_dict)
        self.rate = rate
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc1 = nn.Linear(16 * 9, 32)
        self.fc2 = nn.Linear(32, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = functional.max_pool2d(functional.elu(self.conv1(image)), 2)
        hidden = functional.max_pool2d(functional.elu(self.conv2(hidden)), 2)
        return self.fc2(functional.elu(self.fc1(hidden.flatten(1))))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        logits = self(image)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=self.rate)


def _picture(seed: int, return_dict: bool, rate: float = 0.3) -> TrainingSetup:
    """An image classifier whose Adam uses a rate for SGD."""
    return TrainingSetup(_Stripes(return_dict, rate), make_loader(*stripes(seed, 640), batch=16, seed=seed))


class _Tagger(StepOutputModule):
    def __init__(self, return_dict: bool, rate: float) -> None:
        super().__init__(return_dict)
        self.rate = rate
        self.embedding = nn.Embedding(40, 32, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(12, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(32, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) + self.position
        return self.classify(self.encoder(hidden, src_key_padding_mask=tokens == 0)[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=self.rate)


def _transformer(seed: int, return_dict: bool, rate: float = 0.1) -> TrainingSetup:
    """A small transformer with AdamW at 0.1: the loss remains at chance level."""
    return TrainingSetup(_Tagger(return_dict, rate), make_loader(*sentences(seed, 640), batch=16, seed=seed))


class _Median(StepOutputModule):
    def __init__(self, return_dict: bool, rate: float) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 3))
        self.quantiles = torch.tensor([0.1, 0.5, 0.9])
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        preds = self(x)
        error = y - preds
        loss = torch.maximum(self.quantiles * error, (self.quantiles - 1) * error).mean()
        return self.step_output(loss, preds, y)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=self.rate)


def _quantiles(seed: int, return_dict: bool, rate: float = 1e-6) -> TrainingSetup:
    """Three quantiles with SGD at 1e-6, a rate for fine-tuning: almost no progress."""
    x, y = surface(seed, 800)
    return TrainingSetup(_Median(return_dict, rate), make_loader(x, y.unsqueeze(1), batch=20, seed=seed))


class _Forecaster(StepOutputModule):
    def __init__(self, return_dict: bool, total: int) -> None:
        super().__init__(return_dict)
        self.total = total
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(wave)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, after = batch
        preds = self(wave)
        return self.step_output(functional.mse_loss(preds, after), preds, after)

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=3e-3)
        decay = LambdaLR(optimizer, lambda step: max(0.0, 1 - step / self.total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def _decay(seed: int, return_dict: bool, total: int = 3) -> TrainingSetup:
    """A linear decay with the number of epochs as total steps: the rate is zero after three batches."""
    return TrainingSetup(_Forecaster(return_dict, total), make_loader(*waves(seed, 640), batch=16, seed=seed))


class _WarmedUp(StepOutputModule):
    def __init__(self, return_dict: bool, interval: str) -> None:
        super().__init__(return_dict)
        self.interval = interval
        self.layers = nn.ModuleList([nn.Linear(10, 48), nn.Linear(48, 48)])
        self.final = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = functional.gelu(layer(x))
        return self.final(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch["features"])
        loss = functional.cross_entropy(logits, batch["label"], label_smoothing=0.05)
        return self.step_output(loss, logits, batch["label"])

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=5e-3)
        rise = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 500))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rise, "interval": self.interval}}


def _as_dict(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    features, label = zip(*rows, strict=True)
    return {"features": torch.stack(features), "label": torch.stack(label)}


def _warmup(seed: int, return_dict: bool) -> TrainingSetup:
    """A warm-up in steps with a scheduler that advances per epoch: the rate remains at 1e-5."""
    batches = make_loader(*clusters(seed, 800), batch=16, seed=seed)
    batches.collate_fn = _as_dict
    return TrainingSetup(_WarmedUp(return_dict, "epoch"), batches)


def _summed(seed: int, return_dict: bool, rate: float = 0.02) -> TrainingSetup:
    """A squared error summed over the batch, with a rate for the mean."""
    x, y = surface(seed, 640)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    module = Supervised(
        network, nn.MSELoss(reduction="sum"), return_dict, lambda parameters: SGD(parameters, lr=rate, momentum=0.9)
    )
    return TrainingSetup(module, make_loader(x, y.unsqueeze(1), batch=32, seed=seed))


_SLOW = frozenset({Problem.LEARNING_RATE_TOO_LOW, Problem.LEARNING_RATE_ZERO})

PROGRAMS = [
    Program(
        "pictures_with_the_rate_of_sgd",
        "convolutional",
        _picture,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1])),
        "https://discuss.pytorch.org/t/cross-entropy-loss-is-not-decreasing/43814/16",
    ),
    Program(
        "transformer_at_a_tenth",
        "sequence",
        _transformer,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1])),
        "https://github.com/jadore801120/attention-is-all-you-need-pytorch/issues/94",
    ),
    Program(
        "quantiles_at_a_millionth",
        "regression",
        _quantiles,
        _SLOW,
        lambda outcome: has_changed(outcome) < 1e-3 and outcome.mean_loss(40) > 0.9 * outcome.first_loss(40),
        "https://github.com/torch/optim/issues/164",
    ),
    Program(
        "decay_by_epochs_stepped_by_batches",
        "sequence",
        _decay,
        frozenset({Problem.LEARNING_RATE_ZERO}),
        lambda outcome: is_no_better_than_constant(outcome, variance(training_tensors(outcome)[1]), 0.6),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/18570",
    ),
    Program(
        "warmup_by_steps_stepped_by_epochs",
        "dense",
        _warmup,
        _SLOW,
        lambda outcome: has_changed(outcome) < 0.05 and outcome.mean_loss(40) > 0.85 * outcome.first_loss(40),
        "https://github.com/ace-step/ACE-Step/pull/198",
    ),
    Program(
        "summed_error_with_the_rate_of_the_mean",
        "regression",
        _summed,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH, Problem.EXPLODING_GRADIENTS}),
        lambda outcome: not outcome.mean_loss(15) < 0.9 * 32 * variance(training_tensors(outcome)[1]),
        "https://discuss.pytorch.org/t/loss-function-finding-extreme-local-minimum/188664",
    ),
]

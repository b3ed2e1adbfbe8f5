"""Losses with wrong inputs (logits, probabilities, logarithms), and unintended broadcasts."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.faulty.datasets import discs, make_generator, make_loader, sentences, stripes, surface, waves
from diagnosis_bank.second.faulty.measures import StepOutputModule, outputs, squared_error, training_tensors, variance
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW

from stormproof.finding import Problem


class _SoftmaxNet(nn.Module):
    """A network that ends in probabilities for its predict method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 5, padding=2)
        self.bn = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.bn(self.conv(x))), 4)
        return functional.softmax(self.fc(x.flatten(1)), dim=-1)


def _twice(seed: int, return_dict: bool) -> TrainingSetup:
    """Softmax at the end of a network, followed by CrossEntropyLoss."""
    module = Supervised(_SoftmaxNet(), nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=2e-3))
    return TrainingSetup(module, make_loader(*stripes(seed, 640), batch=16, seed=seed))


class _Negative(StepOutputModule):
    """Classifies a bag of words with the negative log-likelihood."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.bag = nn.EmbeddingBag(40, 24, padding_idx=0)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(24, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.dropout(torch.relu(self.bag(tokens))))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        scores = self(tokens)
        return self.step_output(functional.nll_loss(scores, label), scores, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _logits(seed: int, return_dict: bool) -> TrainingSetup:
    """nll_loss of raw scores without log_softmax: the loss falls without limit."""
    return TrainingSetup(_Negative(return_dict), make_loader(*sentences(seed, 640), batch=16, seed=seed))


class _Labels(StepOutputModule):
    """Several independent labels per sample."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 5), nn.Sigmoid())
        self.criterion = nn.BCEWithLogitsLoss()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, labels = batch
        scores = self(x)
        return self.step_output(self.criterion(scores, labels), scores, labels)

    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=5e-3)


def _labels(seed: int, return_dict: bool) -> TrainingSetup:
    """BCEWithLogitsLoss after a sigmoid that was left from BCELoss."""
    rng = make_generator(seed)
    x = torch.randn(800, 10, generator=rng)
    labels = (x @ torch.randn(10, 5, generator=rng) > 1.5).float()
    return TrainingSetup(_Labels(return_dict), make_loader(x, labels, batch=20, seed=seed))


class _Student(StepOutputModule):
    """Learns the class distribution of a teacher."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 5)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.out(self.gru(wave)[0].mean(1)), -1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, soft = batch
        probabilities = self(wave)
        loss = functional.kl_div(probabilities, soft, reduction="batchmean")
        return self.step_output(loss, probabilities, soft)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _soft(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    wave, _ = waves(seed, 640)
    crossings = ((wave[:, 1:, 0] * wave[:, :-1, 0]) < 0).sum(1, keepdim=True).float()
    return wave, torch.softmax(-((crossings - torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5])) ** 2), -1)


def _distilled(seed: int, return_dict: bool) -> TrainingSetup:
    """Distillation with kl_div of probabilities instead of log-probabilities."""
    return TrainingSetup(_Student(return_dict), make_loader(*_soft(seed), batch=16, seed=seed))


class _Column(nn.Module):
    """A regression with one output column."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(x)))


def _column(seed: int, return_dict: bool) -> TrainingSetup:
    """Predictions (N, 1) and targets (N,): every prediction is compared with every target."""
    module = Supervised(_Column(), nn.MSELoss(), return_dict, lambda ps: Adam(ps, lr=1e-2))
    return TrainingSetup(module, make_loader(*surface(seed, 800), batch=20, seed=seed))


class _Counts(StepOutputModule):
    """Poisson regression of event counts."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.groups = nn.Embedding(20, 8)
        self.net = nn.Sequential(nn.Linear(8 + 4, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([self.groups(x[:, 0].long()), x[:, 1:]], 1)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, count = batch
        log_rate = self(x)
        return self.step_output(functional.poisson_nll_loss(log_rate, count), log_rate, count)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=1e-2)


def _counted(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = make_generator(seed)
    group = torch.randint(20, (960, 1), generator=rng)
    x = torch.randn(960, 4, generator=rng)
    log_rate = 1 + torch.randn(20, 1, generator=rng)[group.squeeze(1)] + 0.5 * x[:, :1] - 0.5 * x[:, 1:2]
    return torch.cat([group.float(), x], 1), torch.poisson(log_rate.clamp(max=4).exp(), generator=rng)


def _counts(seed: int, return_dict: bool) -> TrainingSetup:
    """A Poisson loss of log-rates (N,) and counts (N, 1)."""
    return TrainingSetup(_Counts(return_dict), make_loader(*_counted(seed), batch=24, seed=seed))


class _EachStep(StepOutputModule):
    """Predicts the next value at each step."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(wave)
        return self.out(states)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, following = batch
        preds = self(wave)
        return self.step_output(((preds - following) ** 2).mean(), preds, following)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=1e-2)


def _steps(seed: int, return_dict: bool) -> TrainingSetup:
    """Predictions (B, T, 1) minus targets (B, T) with B = T: broadcasts without an error."""
    wave, after = waves(seed, 800, length=20)
    following = torch.cat([wave[:, 1:, 0], after], 1)
    return TrainingSetup(_EachStep(return_dict), make_loader(wave, following, batch=20, seed=seed))


class _Pixels(StepOutputModule):
    """Predicts a mask of one channel with a fully convolutional network."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.net(image), 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, mask = batch
        probabilities = self(image)
        loss = nn.NLLLoss(weight=torch.tensor([0.3, 0.7]))(probabilities, mask.squeeze(1).long())
        return self.step_output(loss, probabilities, mask.squeeze(1).long())

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


def _pixels(seed: int, return_dict: bool) -> TrainingSetup:
    """Segmentation with NLLLoss of probabilities instead of logarithms."""
    return TrainingSetup(_Pixels(return_dict), make_loader(*discs(seed, 384), batch=16, seed=seed))


def _counts_took_effect(outcome: Outcome) -> bool:
    x, count = training_tensors(outcome)
    rate = outputs(outcome, x).exp()
    return float((rate - count.squeeze(1)).pow(2).mean()) > 0.85 * variance(count)


def _steps_took_effect(outcome: Outcome) -> bool:
    wave, following = training_tensors(outcome)
    error = (outputs(outcome, wave).squeeze(-1) - following).pow(2).mean()
    return float(error) > 0.7 * variance(following)


_FED = frozenset({Problem.LOSS_INPUT_MISMATCH})
_STRETCHED = frozenset({Problem.BROADCAST_MISMATCH})

PROGRAMS = [
    Program(
        "softmax_before_cross_entropy",
        "convolutional",
        _twice,
        _FED,
        lambda outcome: outcome.mean_loss(30) > 0.74,
        "https://discuss.pytorch.org/t/cross-entropy-loss-is-not-decreasing/43814/16",
    ),
    Program(
        "raw_scores_into_nll",
        "sequence",
        _logits,
        _FED,
        lambda outcome: outcome.mean_loss() < -1,
        "https://github.com/pandeykartikey/Hierarchical-Attention-Network/issues/3",
    ),
    Program(
        "sigmoid_before_bce_with_logits",
        "dense",
        _labels,
        _FED,
        lambda outcome: outcome.mean_loss(30) > 0.6,
        "https://leyaa.ai/codefly/learn/pytorch/qna/bceloss-vs-bcewithlogitsloss-in-pytorch",
    ),
    Program(
        "probabilities_into_kl_div",
        "sequence",
        _distilled,
        _FED,
        lambda outcome: outcome.mean_loss() < -0.5,
        "https://github.com/sebastian-hofstaetter/matchmaker/issues/18",
    ),
    Program(
        "probabilities_into_nll_of_pixels",
        "convolutional",
        _pixels,
        _FED,
        lambda outcome: outcome.mean_loss() < 0,
        "https://github.com/AnubhavGupta3377/Text-Classification-Models-Pytorch/issues/9",
    ),
    Program(
        "column_against_row",
        "regression",
        _column,
        _STRETCHED,
        lambda outcome: squared_error(outcome) > 0.8 * variance(training_tensors(outcome)[1]),
        "https://github.com/pytorch/pytorch/issues/16045",
    ),
    Program(
        "poisson_counts_as_a_column",
        "dense",
        _counts,
        _STRETCHED,
        _counts_took_effect,
        "https://github.com/deepset-ai/FARM/issues/229",
    ),
    Program(
        "steps_against_steps",
        "sequence",
        _steps,
        _STRETCHED,
        _steps_took_effect,
        "https://github.com/AIStream-Peelout/flow-forecast/issues/246",
    ),
]

"""Unusual ways to train on tables: own steps, very small and very large batches, noisy weights and noisy inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.fourth.tables_support import (
    Steps,
    batched_loader,
    evaluate,
    explains,
    is_accurate,
    loader,
    loaders,
    mlp,
    ran,
    scores,
    series,
    source_of,
    table,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional


class _Purchases(Steps):
    """Factors of users and items, ranked against drawn items, with sparse gradients and two optimizers."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.users, self.items = nn.Embedding(500, 8, sparse=True), nn.Embedding(4000, 8, sparse=True)
        self.popularity = nn.Linear(8, 1, bias=False)
        for layer in (self.users, self.items):
            nn.init.normal_(layer.weight, std=0.05)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        user, item = batch
        others = torch.randint(600, item.shape)
        first, second = self.items(item), self.items(others)
        margin = ((first - second) * self.users(user)).sum(1) + self.popularity(first - second).squeeze(1)
        return -functional.logsigmoid(margin).mean(), margin, torch.ones_like(margin)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, preds, target = self.compute(batch)
        sparse, dense = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        sparse.zero_grad()
        dense.zero_grad()
        self.manual_backward(loss)
        sparse.step()
        dense.step()
        return {"loss": loss.detach(), "preds": preds, "target": target} if self.return_dict else loss.detach()

    def configure_optimizers(self) -> Any:
        sparse = torch.optim.SparseAdam([self.users.weight, self.items.weight], lr=1e-2)
        return sparse, torch.optim.Adam(self.popularity.parameters(), lr=1e-2)


def _few_of_the_items_occur(seed: int, return_dict: bool) -> TrainingSetup:
    """Most of the 4000 items are never seen, all targets are 1, and the loss starts at the logarithm of 2."""
    source = source_of(seed)
    tastes, kinds = torch.randn(500, 2, generator=source), torch.randn(600, 2, generator=source)
    chance = torch.softmax(3 * tastes @ kinds.T, 1)
    user = torch.randint(500, (9600,), generator=source)
    item = torch.multinomial(chance[user], 1, generator=source).squeeze(1)
    train, validation = loaders(600, 128, user, item)
    return TrainingSetup(_Purchases(return_dict), train, validation, {"max_epochs": 6})


def _ranks_purchases(outcome: Outcome) -> bool:
    return ran(outcome) and float((evaluate(outcome)[1] > 0).double().mean()) > 0.72


def _single_rows(seed: int, return_dict: bool) -> TrainingSetup:
    """Each batch is one row, so the losses of neighboring steps differ a hundredfold."""
    train, validation = loaders(300, 1, *table(seed, 1200, 6, noise=0.3))
    network = nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.01))
    return TrainingSetup(module, train, validation, {"max_epochs": 2})


class _Large(Steps):
    """A classifier with a high rate, which is warmed up and then falls by a cosine."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.network = mlp(12, 64, 64, 4, between=nn.GELU)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, kinds = batch
        logits = self.network(rows)
        return functional.cross_entropy(logits, kinds, label_smoothing=0.05), logits, kinds

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)

        def factor(step: int) -> float:
            return min((step + 1) / 15, 0.5 * (1 + math.cos(math.pi * min(step / 90, 1.0))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def _four_thousand_rows_per_batch(seed: int, return_dict: bool) -> TrainingSetup:
    """Ninety steps in all, of 4096 rows each, at a rate of 0.02."""
    rows, values = table(seed, 94000, 12, 4, noise=0.1)
    kinds = values.argmax(1)
    train, validation = batched_loader(4096, rows[1800:], kinds[1800:]), loader(450, rows[:1800], kinds[:1800])
    return TrainingSetup(_Large(return_dict), train, validation, {"max_epochs": 4})


class _Sharpness(Steps):
    """Sharpness-aware minimization: two backward passes per step, of which the first only moves the weights."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.automatic_optimization = False
        self.network = nn.Sequential(nn.Linear(14, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 3))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, kinds = batch
        logits = self.network(rows)
        return functional.cross_entropy(logits, kinds), logits, kinds

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        loss, preds, target = self.compute(batch)
        self.manual_backward(loss)
        weights = [weight for weight in self.parameters() if weight.grad is not None]
        norm = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm() + 1e-12
        moves = [0.05 * weight.grad / norm for weight in weights if weight.grad is not None]
        with torch.no_grad():
            for weight, move in zip(weights, moves, strict=True):
                weight.add_(move)
        optimizer.zero_grad()
        self.manual_backward(self.compute(batch)[0])
        with torch.no_grad():
            for weight, move in zip(weights, moves, strict=True):
                weight.sub_(move)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.detach(), "preds": preds, "target": target} if self.return_dict else loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _two_passes_per_step(seed: int, return_dict: bool) -> TrainingSetup:
    """The weights are moved uphill, and moved back before the step."""
    rows, values = table(seed, 3600, 14, 3)
    train, validation = loaders(400, 32, rows, values.argmax(1))
    return TrainingSetup(_Sharpness(return_dict), train, validation, {"max_epochs": 4})


class _Projected(Steps):
    """Two tasks whose gradients are projected onto each other where they disagree, and set by hand."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.automatic_optimization = False
        self.body = nn.Sequential(mlp(10, 64, 64, between=nn.SiLU), nn.SiLU())
        self.heads = nn.ModuleList([nn.Linear(64, 1), nn.Linear(64, 1)])

    def losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Returns the predictions and the losses of both tasks."""
        hidden = self.body(batch[0])
        preds = torch.cat([head(hidden) for head in self.heads], 1)
        return preds, (preds - batch[1]).square().mean(0)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        preds, losses = self.losses(batch)
        return losses.sum(), preds, batch[1]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        preds, losses = self.losses(batch)
        weights = list(self.parameters())
        gradients = []
        for loss in losses:
            parts = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            full = [torch.zeros_like(w) if part is None else part for w, part in zip(weights, parts, strict=True)]
            gradients.append(torch.cat([part.flatten() for part in full]))
        first, second = gradients
        product = first @ second
        if product < 0:
            first, second = first - product / second.dot(second) * second, second - product / first.dot(first) * first
        sizes = [weight.numel() for weight in weights]
        for weight, gradient in zip(weights, (first + second).split(sizes), strict=True):
            weight.grad = gradient.view_as(weight)
        optimizer.step()
        loss = losses.sum().detach()
        return {"loss": loss, "preds": preds.detach(), "target": batch[1]} if self.return_dict else loss


def _gradients_set_by_hand(seed: int, return_dict: bool) -> TrainingSetup:
    """Neither backward nor zero_grad is called: gradients are computed and assigned in each step."""
    train, validation = loaders(400, 32, *table(seed, 3600, 10, 2))
    return TrainingSetup(_Projected(return_dict), train, validation, {"max_epochs": 4})


class _NoisyLinear(nn.Module):
    """A Bayesian linear layer with noise on its outputs, and its divergence from a normal prior."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.randn(after, before) / math.sqrt(before))
        self.log_spread = nn.Parameter(torch.full((after, before), -3.0))
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = functional.linear(inputs, self.center, self.bias)
        if not self.training:
            return outputs
        variance = functional.linear(inputs.square(), torch.exp(2 * self.log_spread)) + 1e-8
        return outputs + variance.sqrt() * torch.randn_like(outputs)

    def divergence(self) -> Tensor:
        """Returns the divergence from a standard normal prior."""
        return (0.5 * (torch.exp(2 * self.log_spread) + self.center.square() - 1) - self.log_spread).sum()


class _NoisyWeights(Steps):
    """A regression with noisy weights and the divergence divided by the number of rows."""

    def __init__(self, return_dict: bool, rows: int) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.first, self.second, self.third = _NoisyLinear(7, 48), _NoisyLinear(48, 48), _NoisyLinear(48, 1)
        self.log_noise = nn.Parameter(torch.zeros(1))
        self.rows = rows

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs, target = batch
        preds = self.third(functional.relu(self.second(functional.relu(self.first(inputs)))))
        likelihood = ((preds - target).square() * torch.exp(-2 * self.log_noise) / 2 + self.log_noise).mean()
        divergence = self.first.divergence() + self.second.divergence() + self.third.divergence()
        return likelihood + divergence / self.rows, preds, target


def _divergence_larger_than_the_likelihood(seed: int, return_dict: bool) -> TrainingSetup:
    """The divergence of the weights is most of the loss, and half of the weights forget the data."""
    train, validation = loaders(400, 32, *table(seed, 3600, 7))
    return TrainingSetup(_NoisyWeights(return_dict, 3200), train, validation, {"max_epochs": 10})


class _SwappedCells(Steps):
    """An autoencoder of rows of which a fifth of the cells is swapped with other rows."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.network = mlp(18, 128, 128, 18)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (rows,) = batch
        others = torch.stack([column[torch.randperm(len(rows))] for column in rows.T], 1)
        preds = self.network(torch.where(torch.rand_like(rows) < 0.2, others, rows))
        return functional.mse_loss(preds, rows), preds, rows


def _cells_swapped_with_other_rows(seed: int, return_dict: bool) -> TrainingSetup:
    """A fifth of the inputs belongs to other rows, by intention."""
    source = source_of(seed)
    rows = scores(torch.randn(3600, 3, generator=source), source, 18) + 0.1 * torch.randn(3600, 18, generator=source)
    train, validation = loaders(400, 64, rows)
    return TrainingSetup(_SwappedCells(return_dict), train, validation, {"max_epochs": 10})


class _Gaps(Steps):
    """A recurrence over values, masks and the time since the last value, with a loss on known targets only."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.cell, self.head = nn.GRU(3, 32, batch_first=True), nn.Linear(32, 1)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, is_known = batch
        waiting, since = torch.zeros(len(values)), []
        for known in is_known.unbind(1):
            waiting = (waiting + 0.1) * (1 - known)
            since.append(waiting)
        inputs = torch.stack([values * is_known, is_known, torch.stack(since, 1)], 2)
        preds = self.head(self.cell(inputs[:, :-1])[0]).squeeze(2)[:, 10:]
        known, target = is_known[:, 11:], values[:, 11:]
        return ((preds - target).square() * known).sum() / known.sum(), preds, target


def _two_values_of_three_missing(seed: int, return_dict: bool) -> TrainingSetup:
    """Two values of three are missing: their inputs are zero and their targets are not used."""
    values = series(seed, 1800, 36, noise=0.05)
    is_known = (torch.rand(values.shape, generator=source_of(seed + 4)) < 0.35).float()
    train, validation = loaders(200, 32, values, is_known)
    return TrainingSetup(_Gaps(return_dict), train, validation, {"max_epochs": 10, "gradient_clip_val": 1.0})


class _Additive(Steps):
    """A sum of small networks, one for each column. Whole columns are dropped in training."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.parts = nn.ModuleList([mlp(1, 24, 1) for _ in range(8)])
        self.bias = nn.Parameter(torch.zeros(1))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, target = batch
        parts = torch.cat([part(rows[:, number : number + 1]) for number, part in enumerate(self.parts)], 1)
        penalty = 1e-3 * parts.square().mean()
        preds = functional.dropout(parts, 0.1, self.training).sum(1, keepdim=True) + self.bias
        return functional.mse_loss(preds, target) + penalty, preds, target

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.NAdam(self.parameters(), lr=self.rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)]


def _five_columns_without_effect(seed: int, return_dict: bool) -> TrainingSetup:
    """Five columns of eight have no effect, so the networks of these columns become almost constant."""
    rows = torch.randn(3600, 8, generator=source_of(seed))
    values = torch.sin(2 * rows[:, 0]) + rows[:, 1].abs() + 0.7 * rows[:, 2]
    values = ((values - values.mean()) / values.std()).unsqueeze(1)
    train, validation = loaders(400, 32, rows, values + 0.1 * torch.randn(3600, 1, generator=source_of(seed + 2)))
    return TrainingSetup(_Additive(return_dict), train, validation, {"max_epochs": 6})


def _follows_rows(outcome: Outcome) -> bool:
    """Returns True if the validation loss is far below the variance of one."""
    return ran(outcome) and outcome.validation[-1] < 0.5


PROGRAMS: list[Program] = [
    Program(
        "few_of_four_thousand_items_occur",
        "dense",
        _few_of_the_items_occur,
        frozenset(),
        _ranks_purchases,
        "https://arxiv.org/abs/1205.2618",
    ),
    Program(
        "one_row_per_batch",
        "regression",
        _single_rows,
        frozenset(),
        _follows_rows,
        "https://arxiv.org/abs/1804.07612",
    ),
    Program(
        "four_thousand_rows_per_batch",
        "dense",
        _four_thousand_rows_per_batch,
        frozenset(),
        is_accurate(0.8),
        "https://arxiv.org/abs/1706.02677",
    ),
    Program(
        "weights_moved_uphill_before_each_step",
        "dense",
        _two_passes_per_step,
        frozenset(),
        is_accurate(0.75),
        "https://arxiv.org/abs/2010.01412",
    ),
    Program(
        "gradients_of_two_tasks_projected_and_assigned",
        "regression",
        _gradients_set_by_hand,
        frozenset(),
        explains(0.7),
        "https://arxiv.org/abs/2001.06782",
    ),
    Program(
        "divergence_of_noisy_weights_is_most_of_the_loss",
        "regression",
        _divergence_larger_than_the_likelihood,
        frozenset(),
        explains(0.8),
        "https://arxiv.org/abs/1506.02557",
    ),
    Program(
        "cells_swapped_with_those_of_other_rows",
        "dense",
        _cells_swapped_with_other_rows,
        frozenset(),
        explains(0.6),
        "https://www.kaggle.com/c/porto-seguro-safe-driver-prediction/discussion/44629",
    ),
    Program(
        "two_readings_of_three_missing",
        "sequence",
        _two_values_of_three_missing,
        frozenset(),
        explains(0.6),
        "https://arxiv.org/abs/1606.01865",
    ),
    Program(
        "columns_without_effect_in_an_additive_model",
        "regression",
        _five_columns_without_effect,
        frozenset(),
        explains(0.8),
        "https://arxiv.org/abs/2004.13912",
    ),
]

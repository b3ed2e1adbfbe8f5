"""Unusual losses of tables that train well: ranks, equations, counts, mixtures, hazards and quantiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.fourth.tables_support import (
    Steps,
    evaluate,
    explained,
    explains,
    is_accurate,
    loader,
    loaders,
    mlp,
    ran,
    scores,
    source_of,
    table,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader


class _Ranking(Steps):
    """Scores of two rows, of which the first is the better one in each pair."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.score = mlp(12, 48, 48, 1, between=nn.Tanh)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        better, worse = batch
        margin = (self.score(better) - self.score(worse)).squeeze(1)
        target = torch.ones_like(margin)
        return functional.binary_cross_entropy_with_logits(margin, target), margin, target


def _first_row_always_wins(seed: int, return_dict: bool) -> TrainingSetup:
    """All targets are 1, and the bias of the score cancels."""
    rows, values = table(seed, 6400, 12, noise=0.1)
    first, second = rows[:3200], rows[3200:]
    wins = values[:3200] > values[3200:]
    train, validation = loaders(400, 32, torch.where(wins, first, second), torch.where(wins, second, first))
    return TrainingSetup(_Ranking(return_dict), train, validation, {"max_epochs": 6})


class _Rod(Steps):
    """The bending of a rod with fixed ends only from its equation, by second derivatives."""

    def __init__(self, return_dict: bool, heights: Tensor) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.register_buffer("heights", heights)
        self.network = mlp(1, 32, 32, 1, between=nn.Tanh)

    def bending(self, places: Tensor) -> Tensor:
        """Returns the predicted bending, which is zero at 0 and 1."""
        return 4 * places * (1 - places) * self.network(4 * places - 2)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            places = batch[0].clone().requires_grad_()
            bending = self.bending(places)
            slope = torch.autograd.grad(bending.sum(), places, create_graph=True)[0]
            curve = torch.autograd.grad(slope.sum(), places, create_graph=True)[0]
        numbers = torch.arange(1, 4)
        load = (self.heights * numbers**2 * torch.sin(math.pi * numbers * places)).sum(1, keepdim=True)
        residual = curve / math.pi**2 + load
        return residual.square().mean(), residual, torch.zeros_like(residual)


def _bending_from_its_equation(seed: int, return_dict: bool) -> TrainingSetup:
    """There are no targets but the residual of zero."""
    source = source_of(seed)
    heights = torch.tensor([1.0, 0.4, 0.2]) * torch.where(torch.rand(3, generator=source) < 0.5, -1.0, 1.0)
    train = loader(32, torch.rand(960, 1, generator=source))
    return TrainingSetup(_Rod(return_dict, heights), train, None, {"max_epochs": 20})


def _bending_is_right(outcome: Outcome) -> bool:
    module: Any = outcome.after
    places = torch.linspace(0, 1, 101).unsqueeze(1)
    numbers = torch.arange(1, 4)
    truth = (module.heights * torch.sin(math.pi * numbers * places)).sum(1, keepdim=True)
    error = (module.bending(places) - truth).square().mean() / truth.square().mean()
    return ran(outcome) and float(error) < 0.05


class _Genes(Steps):
    """Counts of twelve genes by a negative binomial law with a dispersion for each gene."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.network = mlp(8, 48, 12, between=nn.SiLU)
        self.log_dispersion = nn.Parameter(torch.zeros(12))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, depth, counts = batch
        mean = torch.exp(self.network(rows)) * depth
        size = self.log_dispersion.exp()
        likelihood = torch.lgamma(counts + size) - torch.lgamma(size) - torch.lgamma(counts + 1)
        likelihood = likelihood - size * torch.log1p(mean / size) - counts * torch.log1p(size / mean)
        return -likelihood.sum(1).mean(), mean, counts


def _counts_of_genes(seed: int, return_dict: bool) -> TrainingSetup:
    """Three counts of four are zero, and the others vary more than a Poisson law allows."""
    source = source_of(seed)
    rows = torch.randn(3600, 8, generator=source)
    depth = 0.5 + torch.rand(3600, 1, generator=source)
    mean = depth * torch.exp(1.1 * scores(rows, source, 12) - 1.5)
    gamma = torch.distributions.Gamma(2.0, 2.0).sample(mean.shape)
    train, validation = loaders(400, 32, rows, depth, torch.poisson(mean * gamma))
    return TrainingSetup(_Genes(return_dict), train, validation, {"max_epochs": 5})


def _rates_are_related(outcome: Outcome) -> bool:
    _, mean, counts = evaluate(outcome)
    pair = torch.stack([mean.flatten().log(), torch.log1p(counts.flatten())])
    return ran(outcome) and float(torch.corrcoef(pair)[0, 1]) > 0.35 and float((counts == 0).float().mean()) > 0.65


class _Branches(Steps):
    """A mixture density network for values whose sign cannot be known."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=4e-3)
        self.network = mlp(5, 48, 48, 9, between=nn.Tanh)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, target = batch
        shares, centers, widths = self.network(rows).chunk(3, dim=1)
        law = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=shares),
            torch.distributions.Normal(centers, functional.softplus(widths) + 1e-2),
        )
        return -law.log_prob(target.squeeze(1)).mean(), law.mean.unsqueeze(1), target


def _sign_cannot_be_known(seed: int, return_dict: bool) -> TrainingSetup:
    """The mean of the mixture is zero for all rows, while its two branches depend on them."""
    source = source_of(seed)
    rows = torch.randn(3400, 5, generator=source)
    size = 1.5 + 0.5 * torch.tanh(scores(rows, source)) + 0.1 * torch.randn(3400, 1, generator=source)
    sign = torch.where(torch.rand(3400, 1, generator=source) < 0.5, -1.0, 1.0)
    train, validation = loaders(200, 32, rows, sign * size)
    return TrainingSetup(_Branches(return_dict), train, validation, {"max_epochs": 6})


def _finds_both_branches(outcome: Outcome) -> bool:
    return ran(outcome) and abs(explained(outcome)) < 0.15 and evaluate(outcome)[0] < 0.6


class _Weighted(Steps):
    """A class and a precise value, weighted by learned variances."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=4e-3)
        self.body = nn.Sequential(mlp(9, 64, 64), nn.ReLU())
        self.value, self.kind = nn.Linear(64, 1), nn.Linear(64, 3)
        self.log_variances = nn.Parameter(torch.zeros(2))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, (values, kinds) = batch[0], batch[1:]
        hidden = self.body(rows)
        preds = self.value(hidden)
        errors = torch.stack([functional.mse_loss(preds, values), functional.cross_entropy(self.kind(hidden), kinds)])
        return (errors * torch.exp(-self.log_variances) + self.log_variances).sum(), preds, values


def _weights_below_zero(seed: int, return_dict: bool) -> TrainingSetup:
    """The weighted loss falls far below zero, as the value is learned almost exactly."""
    rows, values = table(seed, 4000, 9, 4, noise=0.05)
    train, validation = loaders(160, 32, rows, values[:, :1], values[:, 1:].argmax(1))
    return TrainingSetup(_Weighted(return_dict), train, validation, {"max_epochs": 8})


def _is_below_zero(outcome: Outcome) -> bool:
    return ran(outcome) and outcome.mean_loss(30) < -1 and explained(outcome) > 0.9


class _Claims(Steps):
    """Yearly claims by the deviance of a Tweedie law of power 1.5."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.network = mlp(10, 32, 32, 1)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, amounts = batch
        mean = torch.exp(self.network(rows))
        return (2 * amounts / mean.sqrt() + 2 * mean.sqrt()).mean(), mean, amounts

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)}


def _nine_of_ten_without_a_claim(seed: int, return_dict: bool) -> TrainingSetup:
    """Nine amounts of ten are zero, and a few of the others are very large."""
    source = source_of(seed)
    rows = torch.randn(7000, 10, generator=source)
    values = scores(rows, source)
    claims = torch.poisson(torch.exp(1.0 * values - 2.7), generator=source)
    sizes = torch.exp(0.5 * values + 0.8 * torch.randn(7000, 1, generator=source))
    train, validation = loaders(1000, 64, rows, claims * sizes)
    return TrainingSetup(_Claims(return_dict), train, validation, {"max_epochs": 6})


def _orders_the_claims(outcome: Outcome) -> bool:
    _, mean, amounts = evaluate(outcome)
    claimed = mean[amounts > 0].unsqueeze(0) > mean[amounts == 0].unsqueeze(1)
    return ran(outcome) and float((amounts == 0).float().mean()) > 0.8 and float(claimed.float().mean()) > 0.62


class _Hazards(Steps):
    """Hazards of eight intervals. Intervals after the end of the observation are masked."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.network = nn.Sequential(nn.Linear(9, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 8))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, interval, died = batch["rows"], batch["interval"], batch["died"]
        logits = self.network(rows)
        target = functional.one_hot(interval, 8) * died.unsqueeze(1)
        is_at_risk = torch.arange(8) <= interval.unsqueeze(1)
        losses = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
        return (losses * is_at_risk).sum() / len(rows), logits, target.float()

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


def _hazards_with_masks(seed: int, return_dict: bool) -> TrainingSetup:
    """Many targets lie after the end of the observation, and few of the others are 1."""
    source = source_of(seed)
    rows = torch.randn(3600, 9, generator=source)
    times = -torch.log(torch.rand(3600, generator=source)) * 4 * torch.exp(-1.3 * scores(rows, source).squeeze(1))
    ends = 10 * torch.rand(3600, generator=source)
    interval, died = torch.minimum(times, ends).long().clamp(max=7), (times < ends.clamp(max=8)).long()
    samples = [{"rows": row, "interval": i, "died": d} for row, i, d in zip(rows, interval, died, strict=True)]
    train: DataLoader[Any] = DataLoader(samples[:3200], batch_size=32, shuffle=True)
    return TrainingSetup(_Hazards(return_dict), train, DataLoader(samples[3200:], batch_size=100), {"max_epochs": 5})


def _risks_are_ordered(outcome: Outcome) -> bool:
    loader: Any = outcome.fit.validation
    samples = loader.dataset
    times = torch.stack([sample["interval"] for sample in samples])
    died = torch.stack([sample["died"] for sample in samples])
    risks = evaluate(outcome)[1].sigmoid().sum(1)
    is_pair = (times.unsqueeze(1) < times.unsqueeze(0)) & (died.unsqueeze(1) > 0)
    return ran(outcome) and float((risks.unsqueeze(1) > risks.unsqueeze(0))[is_pair].float().mean()) > 0.72


class _DrawnLevels(Steps):
    """Quantiles for levels that are drawn anew in each step."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.rows, self.levels = nn.Linear(8, 48), nn.Linear(16, 48)
        self.head = mlp(48, 48, 1)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, target = batch
        level = torch.rand(len(rows), 1) if self.training else torch.full((len(rows), 1), 0.5)
        waves = torch.cos(math.pi * torch.arange(16) * level)
        preds = self.head(functional.relu(self.rows(rows)) * functional.relu(self.levels(waves)))
        error = target - preds
        return torch.maximum(level * error, (level - 1) * error).mean(), preds, target


def _levels_are_drawn(seed: int, return_dict: bool) -> TrainingSetup:
    """The task differs from step to step, and predictions are far from their targets on purpose."""
    train, validation = loaders(400, 32, *table(seed, 3600, 8, noise=0.3))
    return TrainingSetup(_DrawnLevels(return_dict), train, validation, {"max_epochs": 6})


class _Coral(Steps):
    """Ordered grades by one score and the thresholds between them, which start equal."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.score = nn.Sequential(mlp(11, 48, 24, between=nn.ELU), nn.ELU(), nn.Linear(24, 1, bias=False))
        self.thresholds = nn.Parameter(torch.zeros(6))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, levels = batch
        logits = self.score(rows) + self.thresholds
        loss = functional.binary_cross_entropy_with_logits(logits, levels, reduction="none").sum(1).mean()
        return loss, logits, levels


def _grades_from_equal_thresholds(seed: int, return_dict: bool) -> TrainingSetup:
    """All outputs of a row are equal at the start, and two of six targets are nearly constant."""
    rows, values = table(seed, 3600, 11)
    levels = (values > torch.tensor([-2.2, -1.0, -0.3, 0.3, 1.0, 2.2])).float()
    train, validation = loaders(400, 32, rows, levels)
    return TrainingSetup(_Coral(return_dict), train, validation, {"max_epochs": 5})


PROGRAMS: list[Program] = [
    Program(
        "first_row_of_each_pair_is_the_better_one",
        "dense",
        _first_row_always_wins,
        frozenset(),
        is_accurate(0.77),
        "https://www.microsoft.com/en-us/research/publication/from-ranknet-to-lambdarank-to-lambdamart-an-overview/",
    ),
    Program(
        "bending_of_a_rod_from_its_equation",
        "regression",
        _bending_from_its_equation,
        frozenset(),
        _bending_is_right,
        "https://arxiv.org/abs/1711.10561",
    ),
    Program(
        "counts_of_genes_with_dispersion",
        "regression",
        _counts_of_genes,
        frozenset(),
        _rates_are_related,
        "https://www.nature.com/articles/s41592-018-0229-2",
    ),
    Program(
        "branches_of_unknown_sign",
        "regression",
        _sign_cannot_be_known,
        frozenset(),
        _finds_both_branches,
        "https://github.com/tonyduan/mixture-density-network/issues/1",
    ),
    Program(
        "variances_of_tasks_take_the_loss_below_zero",
        "regression",
        _weights_below_zero,
        frozenset(),
        _is_below_zero,
        "https://github.com/lorenmt/mtan/issues/51",
    ),
    Program(
        "nine_contracts_of_ten_without_a_claim",
        "regression",
        _nine_of_ten_without_a_claim,
        frozenset(),
        _orders_the_claims,
        "https://scikit-learn.org/stable/auto_examples/linear_model/plot_tweedie_regression_insurance_claims.html",
    ),
    Program(
        "hazards_masked_after_the_observation",
        "dense",
        _hazards_with_masks,
        frozenset(),
        _risks_are_ordered,
        "https://arxiv.org/abs/1805.00917",
    ),
    Program(
        "quantiles_of_levels_drawn_in_each_step",
        "regression",
        _levels_are_drawn,
        frozenset(),
        explains(0.7),
        "https://arxiv.org/abs/1806.06923",
    ),
    Program(
        "grades_from_equal_thresholds",
        "dense",
        _grades_from_equal_thresholds,
        frozenset(),
        is_accurate(0.86),
        "https://github.com/Raschka-research-group/coral-pytorch/issues/17",
    ),
]

"""Likelihoods of tables that overflow, and divergences that outweigh the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.fourth.tables_support import (
    Steps,
    explains_less_than,
    is_non_finite,
    loader,
    loaders,
    mlp,
    scores,
    source_of,
    table,
)
from diagnosis_bank.program import Program, TrainingSetup
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


class _Risks(Steps):
    """Proportional hazards by the partial likelihood of a batch."""

    def __init__(self, return_dict: bool, smallest: float) -> None:
        super().__init__(return_dict)
        self.network = nn.Sequential(nn.Linear(10, 32), nn.SELU(), nn.Dropout(0.1), nn.Linear(32, 1))
        self.smallest = smallest

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, times, events = batch
        order = times.argsort(descending=True)
        risks, events = self.network(rows[order]).squeeze(1), events[order]
        likelihood = ((risks - risks.logcumsumexp(0)) * events).sum()
        return -likelihood / events.sum().clamp(min=self.smallest), risks, times[order]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.005, momentum=0.9)


def _no_event_in_a_batch(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The likelihood is divided by the events of the batch, and small batches can have none (bug here)."""
    source = source_of(seed)
    rows = torch.randn(2400, 10, generator=source)
    hazard = torch.exp(1.2 * scores(rows, source).squeeze(1) - 1)
    death = -torch.log(torch.rand(2400, generator=source)) / hazard
    censoring = -torch.log(torch.rand(2400, generator=source)) / 2.5
    train, validation = loaders(400, 16, rows, torch.minimum(death, censoring), (death < censoring).float())
    return TrainingSetup(_Risks(return_dict, 1.0 if is_fixed else 0.0), train, validation, {"max_epochs": 6})


class _Mixture(Steps):
    """A mixture density network with four normal components."""

    def __init__(self, return_dict: bool, is_in_logarithms: bool) -> None:
        super().__init__(return_dict, rate=3e-3)
        self.network = mlp(6, 64, 64, 12, between=nn.Tanh)
        self.is_in_logarithms = is_in_logarithms

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, target = batch
        shares, centers, widths = self.network(rows).chunk(3, dim=1)
        widths = functional.softplus(widths) + 1e-3
        distances = ((target - centers) / widths).square() / 2
        mean = (shares.softmax(1) * centers).sum(1, keepdim=True)
        if self.is_in_logarithms:
            parts = shares.log_softmax(1) - widths.log() - distances
            return -torch.logsumexp(parts, 1).mean() + math.log(2 * math.pi) / 2, mean, target
        density = (shares.softmax(1) * torch.exp(-distances) / (widths * math.sqrt(2 * math.pi))).sum(1)
        return -torch.log(density).mean(), mean, target


def _density_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Densities are summed before the logarithm, and those far from all components are zero (bug here)."""
    rows, target = table(seed, 3400, 6, noise=0.1)
    noise = torch.distributions.StudentT(2.5).sample(target.shape)
    train, validation = loaders(200, 32, rows, 4 * target + noise)
    return TrainingSetup(_Mixture(return_dict, is_fixed), train, validation, {"max_epochs": 4})


class _DeepKernel(Steps):
    """A Gaussian process on learned features, trained by the marginal likelihood of each batch."""

    def __init__(self, return_dict: bool, has_stable_determinant: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.features = mlp(5, 32, 16, 2, between=nn.Tanh)
        self.log_noise = nn.Parameter(torch.tensor(-1.5))
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.has_stable_determinant = has_stable_determinant

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, target = batch
        codes = self.features(rows)
        distances = (codes.unsqueeze(1) - codes.unsqueeze(0)).square().sum(2)
        kernel = self.log_scale.exp() * torch.exp(-distances / 2)
        noise = self.log_noise.exp().square() * torch.eye(len(rows))
        weights = torch.linalg.solve(kernel + noise, target)
        if self.has_stable_determinant:
            logarithm = torch.logdet(kernel + noise)
        else:
            logarithm = torch.log(torch.det(kernel + noise))
        loss = ((target * weights).sum() + logarithm) / (2 * len(rows))
        return loss, kernel @ weights, target


def _determinant_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The determinant of the kernel of 96 rows is below the smallest number, and its logarithm is taken (bug here)."""
    train = loader(96, *table(seed, 2880, 5, noise=0.1))
    return TrainingSetup(_DeepKernel(return_dict, is_fixed), train, None, {"max_epochs": 6})


class _TwoTasks(Steps):
    """A class and a value of each row, weighted by learned uncertainties."""

    def __init__(self, return_dict: bool, learns_logarithm: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.body = nn.Sequential(nn.Linear(14, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.kind, self.value = nn.Linear(64, 3), nn.Linear(64, 1)
        self.uncertainty = nn.Parameter(torch.zeros(2))
        self.learns_logarithm = learns_logarithm

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, kinds, values = batch
        hidden = self.body(rows)
        preds = self.value(hidden)
        losses = torch.stack([functional.cross_entropy(self.kind(hidden), kinds), functional.mse_loss(preds, values)])
        if self.learns_logarithm:
            return (losses * torch.exp(-2 * self.uncertainty) + self.uncertainty).sum(), preds, values
        weighted = losses / (2 * self.uncertainty.square()) + torch.log(self.uncertainty.square())
        return weighted.sum(), preds, values


def _uncertainty_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The losses are divided by squared uncertainties that start at zero (bug here)."""
    rows, values = table(seed, 3600, 14, 4)
    train, validation = loaders(400, 32, rows, values[:, :3].argmax(1), values[:, 3:])
    return TrainingSetup(_TwoTasks(return_dict, is_fixed), train, validation, {"max_epochs": 6})


class _Digits(Steps):
    """A variational autoencoder of digits."""

    def __init__(self, return_dict: bool, sums_pixels: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.encoder = mlp(64, 96, 16)
        self.decoder = mlp(8, 96, 64)
        self.sums_pixels = sums_pixels

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (pictures,) = batch
        center, logvar = self.encoder(pictures).chunk(2, dim=1)
        code = center + torch.exp(logvar / 2) * torch.randn_like(center) if self.training else center
        preds = self.decoder(code)
        divergence = -0.5 * (1 + logvar - center.square() - logvar.exp()).sum()
        if self.sums_pixels:
            error = 2 * functional.mse_loss(preds, pictures, reduction="sum")
            return (error + divergence) / len(pictures), preds, pictures
        return functional.mse_loss(preds, pictures) + divergence, preds, pictures


def _mean_of_pixels_and_sum_of_codes(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The error is a mean over pixels and rows, but the divergence is a sum over both (bug here)."""
    pictures = torch.from_numpy(load_digits().data).float() / 4 - 1.2
    order = torch.randperm(len(pictures), generator=source_of(seed))
    train, validation = loaders(197, 32, pictures[order])
    return TrainingSetup(_Digits(return_dict, is_fixed), train, validation, {"max_epochs": 12})


class _BayesianLinear(nn.Module):
    """A linear layer with normal weights, a normal prior and the divergence between both."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.randn(after, before + 1) / math.sqrt(before))
        self.spread = nn.Parameter(torch.full((after, before + 1), -4.0))

    def forward(self, inputs: Tensor) -> Tensor:
        weights = self.center
        if self.training:
            weights = weights + functional.softplus(self.spread) * torch.randn_like(weights)
        return functional.linear(inputs, weights[:, :-1], weights[:, -1])

    def divergence(self) -> Tensor:
        """Returns the divergence from a prior of deviation 0.5."""
        ratio = (functional.softplus(self.spread) / 0.5).square()
        return 0.5 * (ratio + (self.center / 0.5).square() - 1 - ratio.log()).sum()


class _Bayesian(Steps):
    """A regression with two Bayesian layers."""

    def __init__(self, return_dict: bool, rows: int) -> None:
        super().__init__(return_dict, rate=1e-2)
        self.first, self.second = _BayesianLinear(7, 32), _BayesianLinear(32, 1)
        self.rows = rows

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs, target = batch
        preds = self.second(torch.tanh(self.first(inputs)))
        likelihood = functional.gaussian_nll_loss(preds, target, torch.ones_like(target))
        return likelihood + (self.first.divergence() + self.second.divergence()) / self.rows, preds, target


def _full_divergence_in_each_batch(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The divergence of all weights is added to the mean over a batch without dividing it by the rows (bug here)."""
    train, validation = loaders(400, 32, *table(seed, 3600, 7))
    module = _Bayesian(return_dict, 3200 if is_fixed else 1)
    return TrainingSetup(module, train, validation, {"max_epochs": 8})


class _Couplings(Steps):
    """Eight affine coupling layers for columns of six measurements."""

    def __init__(self, return_dict: bool, limit: float | None) -> None:
        super().__init__(return_dict, rate=1e-3)
        self.layers = nn.ModuleList([mlp(3, 64, 64, 6) for _ in range(8)])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        self.limit = limit

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (rows,) = batch
        kept, changed = rows.chunk(2, dim=1)
        volume = torch.zeros(len(rows))
        for layer in self.layers:
            scale, shift = layer(kept).chunk(2, dim=1)
            if self.limit is not None:
                scale = self.limit * torch.tanh(scale / self.limit)
            kept, changed = changed * torch.exp(scale) + shift, kept
            volume = volume + scale.sum(1)
        codes = torch.cat([kept, changed], 1)
        return (0.5 * codes.square().sum(1) + 3 * math.log(2 * math.pi) - volume).mean(), codes, rows


def _scales_without_limit(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The logarithms of the scales of a flow are not limited, and the weights start large (bug here)."""
    source = source_of(seed)
    factors = torch.randn(3600, 3, generator=source)
    rows = torch.cat([factors, scores(factors, source, 3) + 0.2 * torch.randn(3600, 3, generator=source)], 1)
    train, validation = loaders(400, 32, rows)
    module = _Couplings(return_dict, 0.5 if is_fixed else None)
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


_NON_FINITE = frozenset({Problem.NON_FINITE})
_COLLAPSED = frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT})

PROGRAMS: list[Program] = [
    Program(
        "partial_likelihood_of_a_batch_without_events",
        "regression",
        _no_event_in_a_batch,
        _NON_FINITE,
        is_non_finite,
        "https://github.com/liupei101/TFDeepSurv/issues/15",
    ),
    Program(
        "mixture_densities_summed_before_the_logarithm",
        "regression",
        _density_of_zero,
        _NON_FINITE,
        is_non_finite,
        "https://github.com/keras-team/keras/issues/1061",
    ),
    Program(
        "logarithm_of_the_determinant_of_a_kernel",
        "regression",
        _determinant_of_zero,
        _NON_FINITE,
        is_non_finite,
        "https://github.com/cornellius-gp/gpytorch/pull/226",
    ),
    Program(
        "losses_divided_by_uncertainties_of_zero",
        "dense",
        _uncertainty_of_zero,
        _NON_FINITE,
        is_non_finite,
        "https://github.com/QunBB/DeepLearning/issues/1",
    ),
    Program(
        "mean_error_of_pixels_plus_summed_divergence",
        "dense",
        _mean_of_pixels_and_sum_of_codes,
        _COLLAPSED,
        explains_less_than(0.1),
        "https://github.com/zdebruine/MMVAE/pull/19",
    ),
    Program(
        "divergence_of_bayesian_layers_in_full_for_each_batch",
        "regression",
        _full_divergence_in_each_batch,
        _COLLAPSED,
        explains_less_than(0.3),
        "https://github.com/piEsposito/blitz-bayesian-deep-learning/issues/11",
    ),
    Program(
        "scales_of_a_flow_without_limit",
        "dense",
        _scales_without_limit,
        _NON_FINITE | {Problem.EXPLODING_GRADIENTS},
        lambda outcome: is_non_finite(outcome) or outcome.mean_loss() > 20,
        "https://github.com/ELIFE-ASU/INNLab/issues/7",
    ),
]

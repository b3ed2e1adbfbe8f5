"""Losses and heads that do not fit the targets of tables, series and recommendations."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.fourth.tables_support import (
    Steps,
    evaluate,
    explains_less_than,
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

from stormproof.finding import Problem


class _Counts(Steps):
    """Predicts the rate of counts through a softplus."""

    def __init__(self, return_dict: bool, loss: nn.Module) -> None:
        super().__init__(return_dict, rate=3e-3)
        self.network = nn.Sequential(mlp(9, 48, 48, 1, between=nn.SiLU), nn.Softplus())
        self.loss = loss

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, counts = batch
        rates = self.network(rows)
        return self.loss(rates, counts), rates, counts


def _rates_taken_for_logarithms(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """PoissonNLLLoss expects the logarithm of the rate by default, but receives the rate (bug here)."""
    source = source_of(seed)
    rows = torch.randn(3600, 9, generator=source)
    counts = torch.poisson(torch.exp(0.9 * scores(rows, source) - 1.2), generator=source)
    train, validation = loaders(400, 32, rows, counts)
    module = _Counts(return_dict, nn.PoissonNLLLoss(log_input=not is_fixed))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


def _predicts_too_few(outcome: Outcome) -> bool:
    _, rates, counts = evaluate(outcome)
    return not 0.7 < float(rates.mean() / counts.mean()) < 1.4


class _Pairs(Steps):
    """A Siamese network that compares two rows by the cosine of their codes."""

    def __init__(self, return_dict: bool, other: float) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.tower = mlp(12, 64, 64, 16)
        self.other = other

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        first, second, same = batch
        codes = self.tower(first), self.tower(second)
        signs = torch.where(same > 0.5, 1.0, self.other)
        loss = functional.cosine_embedding_loss(*codes, signs, margin=0.2)
        return loss, functional.cosine_similarity(*codes), same

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def _pairs_of_rows(seed: int, pairs: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    source = source_of(seed)
    centers = torch.randn(8, 12, generator=source)
    first = torch.randint(8, (pairs,), generator=source)
    other = (first + torch.randint(1, 8, (pairs,), generator=source)) % 8
    same = torch.rand(pairs, generator=source) < 0.5
    second = torch.where(same, first, other)
    spread = noise * torch.randn(2, pairs, 12, generator=source)
    return centers[first] + spread[0], centers[second] + spread[1], same.float()


def _zero_for_other_pairs(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """CosineEmbeddingLoss gets 0 for different pairs instead of -1, which adds nothing to the loss (bug here)."""
    train, validation = loaders(256, 64, *_pairs_of_rows(seed, 2560, 0.5))
    return TrainingSetup(_Pairs(return_dict, -1.0 if is_fixed else 0.0), train, validation, {"max_epochs": 8})


def _different_pairs_are_alike(outcome: Outcome) -> bool:
    _, cosines, same = evaluate(outcome)
    return not float(cosines[same < 0.5].mean()) < 0.7


class _Labels(Steps):
    """Predicts which of ten labels apply to a row."""

    def __init__(self, return_dict: bool, loss: nn.Module) -> None:
        super().__init__(return_dict)
        self.network = nn.Sequential(nn.Linear(20, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 10))
        self.loss = loss

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.network(batch["rows"])
        return self.loss(logits, batch["labels"]), logits, batch["labels"]

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


class _LabelRows(torch.utils.data.Dataset):
    """Rows with a vector of labels, as dicts."""

    def __init__(self, seed: int, start: int, stop: int) -> None:
        rows, values = table(seed, 2800, 20, 10, noise=0.0)
        limit = torch.linspace(0.8, 1.6, 10)
        self.rows, self.labels = rows[start:stop], (values > limit).float()[start:stop]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"rows": self.rows[index], "labels": self.labels[index]}


def _multi_hot_into_cross_entropy(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Several labels can apply to a row, but the loss is the cross entropy of a softmax (bug here)."""
    train = torch.utils.data.DataLoader(_LabelRows(seed, 0, 2400), batch_size=32, shuffle=True)
    validation = torch.utils.data.DataLoader(_LabelRows(seed, 2400, 2800), batch_size=100)
    loss = nn.BCEWithLogitsLoss() if is_fixed else nn.CrossEntropyLoss()
    return TrainingSetup(_Labels(return_dict, loss), train, validation, {"max_epochs": 7})


def _labels_are_wrong(outcome: Outcome) -> bool:
    _, logits, labels = evaluate(outcome)
    found = logits > 0
    return not float((labels * found).sum() / found.sum()) > 0.6


class _Quantiles(Steps):
    """Predicts three quantiles of a column with the pinball loss."""

    levels = (0.1, 0.5, 0.9)

    def __init__(self, return_dict: bool, keeps_column: bool) -> None:
        super().__init__(return_dict)
        self.network = mlp(8, 64, 64, 3, between=nn.ELU)
        self.keeps_column = keeps_column

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, target = batch
        preds = self.network(rows)
        losses = []
        for number, level in enumerate(self.levels):
            quantile = preds[:, number : number + 1] if self.keeps_column else preds[:, number]
            error = target - quantile
            losses.append(torch.maximum(level * error, (level - 1) * error).mean())
        return torch.stack(losses).sum(), preds, target

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


def _quantiles_as_rows(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The error of a quantile is a column of targets minus a row of predictions (bug here)."""
    train, validation = loaders(400, 64, *table(seed, 3600, 8, noise=0.3))
    return TrainingSetup(_Quantiles(return_dict, is_fixed), train, validation, {"max_epochs": 10})


def _median_is_useless(outcome: Outcome) -> bool:
    _, preds, target = evaluate(outcome)
    left = (preds[:, 1:2] - target).square().mean() / target.var()
    return not float(left) < 0.5


class _Ratings(nn.Module):
    """Factors and biases of users and items, through a sigmoid."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(80, 6), nn.Embedding(60, 6)
        self.user_bias, self.item_bias = nn.Embedding(80, 1), nn.Embedding(60, 1)
        self.low, self.high = low, high
        for layer in (self.users, self.items, self.user_bias, self.item_bias):
            nn.init.normal_(layer.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        user, item = pairs.unbind(1)
        products = (self.users(user) * self.items(item)).sum(1, keepdim=True)
        score = products + self.user_bias(user) + self.item_bias(item)
        return self.low + (self.high - self.low) * torch.sigmoid(score)


def _ratings_from_a_sigmoid(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Ratings go from 1 to 5, but the sigmoid is not stretched to this range (bug here)."""
    source = source_of(seed)
    pairs = torch.stack([torch.randint(80, (5200,), generator=source), torch.randint(60, (5200,), generator=source)], 1)
    taste, kind = torch.randn(80, 2, generator=source), torch.randn(60, 2, generator=source)
    liked = (taste[pairs[:, 0]] * kind[pairs[:, 1]]).sum(1) + torch.randn(60, generator=source)[pairs[:, 1]]
    stars = (3.2 + liked).round().clamp(1, 5).unsqueeze(1)
    train, validation = loaders(400, 64, pairs, stars)
    network = _Ratings(0.5, 5.5) if is_fixed else _Ratings(0.0, 1.0)
    module = Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-2, weight_decay=1e-5))
    return TrainingSetup(module, train, validation, {"max_epochs": 8})


def _all_ratings_are_below_two(outcome: Outcome) -> bool:
    outcome.after.eval()
    loader: Any = outcome.fit.validation
    with torch.no_grad():
        return not float(torch.cat([outcome.after(pairs) for pairs, _ in loader]).max()) > 2


class _TemporalBlock(nn.Module):
    """Two causal convolutions with a residual connection, and a ReLU after the sum."""

    def __init__(self, before: int, after: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.first = nn.Conv1d(before, after, 3, dilation=dilation)
        self.second = nn.Conv1d(after, after, 3, dilation=dilation)
        self.shortcut = nn.Conv1d(before, after, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.first(functional.pad(inputs, (self.padding, 0))))
        hidden = functional.relu(self.second(functional.pad(hidden, (self.padding, 0))))
        return functional.relu(hidden + self.shortcut(inputs))


class _Forecast(Steps):
    """Predicts the next value at each step of a series."""

    def __init__(self, return_dict: bool, has_head: bool) -> None:
        super().__init__(return_dict, rate=3e-3)
        blocks = [_TemporalBlock(1, 16, 1), _TemporalBlock(16, 16, 2)]
        last = [_TemporalBlock(16, 16, 4), nn.Conv1d(16, 1, 1)] if has_head else [_TemporalBlock(16, 1, 4)]
        self.blocks = nn.Sequential(*blocks, *last)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (values,) = batch
        preds, target = self.blocks(values[:, None, :-1])[:, 0, 8:], values[:, 9:]
        return functional.huber_loss(preds, target), preds, target


def _no_linear_head(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The last temporal block, which ends in a ReLU, is the output for values around zero (bug here)."""
    train, validation = loaders(96, 16, series(seed, 736, 40))
    return TrainingSetup(_Forecast(return_dict, is_fixed), train, validation, {"max_epochs": 6})


def _never_negative(outcome: Outcome) -> bool:
    return ran(outcome) and bool((evaluate(outcome)[1] >= 0).all()) and explains_less_than(0.7)(outcome)


_MISMATCH = frozenset({Problem.LOSS_INPUT_MISMATCH})
_HEAD = frozenset({Problem.UNREACHABLE_TARGETS})

PROGRAMS: list[Program] = [
    Program(
        "rates_of_counts_taken_for_their_logarithms",
        "regression",
        _rates_taken_for_logarithms,
        _MISMATCH,
        _predicts_too_few,
        "https://github.com/pytorch/pytorch/pull/1779",
    ),
    Program(
        "cosine_loss_with_zero_for_different_pairs",
        "dense",
        _zero_for_other_pairs,
        _MISMATCH | {Problem.OUTPUT_IGNORES_INPUT},
        _different_pairs_are_alike,
        "https://github.com/pytorch/pytorch/issues/8316",
    ),
    Program(
        "several_labels_per_row_into_cross_entropy",
        "dense",
        _multi_hot_into_cross_entropy,
        _MISMATCH,
        _labels_are_wrong,
        "https://discuss.pytorch.org/t/using-bcewithlogisloss-for-multi-label-classification/67011",
    ),
    Program(
        "column_of_targets_minus_a_row_of_quantiles",
        "regression",
        _quantiles_as_rows,
        frozenset({Problem.BROADCAST_MISMATCH}),
        _median_is_useless,
        "https://github.com/ml-stat-Sustech/TorchCP/issues/27",
    ),
    Program(
        "ratings_of_one_to_five_from_a_sigmoid",
        "regression",
        _ratings_from_a_sigmoid,
        _HEAD,
        _all_ratings_are_below_two,
        "https://vishalbakshi.github.io/blog/posts/2024-05-23-y-range/index.html",
    ),
    Program(
        "temporal_blocks_without_a_linear_head",
        "sequence",
        _no_linear_head,
        _HEAD,
        _never_negative,
        "https://github.com/locuslab/TCN/issues/34",
    ),
]

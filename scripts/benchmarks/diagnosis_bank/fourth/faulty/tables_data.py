"""Tables whose rows, categories or targets are prepared wrongly, and rates that do not fit the batch."""

from __future__ import annotations

import time
from typing import Any

import torch
from diagnosis_bank.fourth.tables_support import (
    Steps,
    batched_loader,
    evaluate,
    explained,
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
from torch.utils.data import DataLoader, Dataset

from stormproof.finding import Problem


class _Grades(Steps):
    """Ordered groups of age by cumulative logits."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.score = mlp(13, 48, 24, 1, between=nn.LeakyReLU)
        self.thresholds = nn.Parameter(torch.linspace(1.0, -1.0, 4))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, groups = batch
        levels = (groups.unsqueeze(1) > torch.arange(4)).float()
        logits = self.score(rows) + self.thresholds
        return functional.binary_cross_entropy_with_logits(logits, levels), logits, levels


def _boundaries_in_months(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Ages in years are cut at boundaries in months, so all of them are in the first group (bug here)."""
    rows, values = table(seed, 3600, 13)
    years = (48 + 12 * values.squeeze(1)).clamp(18, 90)
    boundaries = torch.tensor([30.0, 40.0, 50.0, 60.0]) * (1 if is_fixed else 12)
    train, validation = loaders(400, 32, rows, torch.bucketize(years, boundaries))
    return TrainingSetup(_Grades(return_dict), train, validation, {"max_epochs": 5})


def _all_levels_are_zero(outcome: Outcome) -> bool:
    return ran(outcome) and bool((evaluate(outcome)[2] == 0).all())


class _Differences(Steps):
    """A Siamese regression of the difference between two rows."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.tower = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 16))
        self.head = nn.Linear(32, 1)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        first, second, target = batch
        codes = torch.cat([self.tower(first), self.tower(second)], 1)
        preds = self.head(functional.silu(codes)).squeeze(1)
        return functional.mse_loss(preds, target), preds, target


def _pairs_drawn_twice(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The pairs of rows and the differences of their values are drawn separately (bug here)."""
    rows, values = table(seed, 1500, 10)
    source = source_of(seed + 5)
    pairs = torch.randint(1500, (2, 3600), generator=source)
    others = pairs if is_fixed else torch.randint(1500, (2, 3600), generator=source)
    differences = (values[others[0]] - values[others[1]]).squeeze(1)
    train, validation = loaders(400, 32, rows[pairs[0]], rows[pairs[1]], differences)
    return TrainingSetup(_Differences(return_dict), train, validation, {"max_epochs": 5})


class _Shops(nn.Module):
    """Embeddings of shop, weekday, month and kind of product."""

    sizes = (40, 7, 12, 9)

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(size + 1, 8) for size in self.sizes])
        self.head = mlp(32, 64, 1)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(torch.cat([table(codes[:, number]) for number, table in enumerate(self.tables)], 1))


def _codes_of_strings(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The codes of categories were saved for strings and are looked up by integers, so all are unknown (bug here)."""
    source = source_of(seed)
    columns = [torch.randint(size, (3600,), generator=source) for size in _Shops.sizes]
    effects = [torch.randn(size, generator=source) for size in _Shops.sizes]
    sales = sum(effect[column] for effect, column in zip(effects, columns, strict=True))
    sales = (sales + 0.3 * torch.randn(3600, generator=source)).unsqueeze(1)
    coded = []
    for column, size in zip(columns, _Shops.sizes, strict=True):
        codes = {str(value): value + 1 for value in range(size)}
        names = [str(value) if is_fixed else value for value in column.tolist()]
        coded.append(torch.tensor([codes.get(name, 0) for name in names]))
    train, validation = loaders(400, 32, torch.stack(coded, 1), sales / sales.std())
    module = Supervised(_Shops(), nn.L1Loss(), return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _sales_are_constant(outcome: Outcome) -> bool:
    loader: Any = outcome.fit.validation
    with torch.no_grad():
        preds = torch.cat([outcome.after(codes) for codes, _ in loader])
    return ran(outcome) and float(preds.std()) < 0.01


class _Factors(Steps):
    """A mean and the products of factors of users and items."""

    def __init__(self, return_dict: bool, deviation: float) -> None:
        super().__init__(return_dict, rate=1e-2)
        self.users, self.items = nn.Embedding(90, 4), nn.Embedding(70, 4)
        self.mean = nn.Parameter(torch.zeros(1))
        nn.init.normal_(self.users.weight, std=deviation)
        nn.init.normal_(self.items.weight, std=deviation)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        user, item, rating = batch
        preds = (self.users(user) * self.items(item)).sum(1) + self.mean
        return functional.mse_loss(preds, rating), preds, rating


def _factors_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The factors of users and those of items start at zero, so none of them has a gradient (bug here)."""
    source = source_of(seed)
    user, item = torch.randint(90, (5200,), generator=source), torch.randint(70, (5200,), generator=source)
    tastes, kinds = torch.randn(90, 3, generator=source), torch.randn(70, 3, generator=source)
    rating = (tastes[user] * kinds[item]).sum(1) / 1.7 + 0.5 + 0.2 * torch.randn(5200, generator=source)
    train, validation = loaders(400, 64, user, item, rating)
    return TrainingSetup(_Factors(return_dict, 0.1 if is_fixed else 0.0), train, validation, {"max_epochs": 8})


def _missing_as_99999(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Missing values are coded as 99999 and enter the network as numbers (bug here)."""
    rows, target = table(seed, 3600, 10)
    is_missing = torch.rand(rows.shape, generator=source_of(seed + 3)) < 0.04
    rows = torch.where(is_missing, 0.0 if is_fixed else 99999.0, rows)
    train, validation = loaders(400, 32, torch.cat([rows, is_missing.float()], 1), target)
    module = Supervised(mlp(20, 64, 64, 1), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=1e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 8})


def _rest_is_large(outcome: Outcome) -> bool:
    return not (ran(outcome) and outcome.validation[-1] < 0.5)


class _Customers(Steps):
    """Columns of customers, and possibly an embedding of their number."""

    def __init__(self, return_dict: bool, uses_number: bool) -> None:
        super().__init__(return_dict, rate=3e-3)
        self.numbers = nn.Embedding(1200, 24)
        self.head = mlp(8 + (24 if uses_number else 0), 16, 1)
        self.uses_number = uses_number

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        number, rows, left = batch
        inputs = torch.cat([rows, self.numbers(number)], 1) if self.uses_number else rows
        preds = self.head(inputs).squeeze(1)
        return functional.binary_cross_entropy_with_logits(preds, left), preds, left

    def configure_optimizers(self) -> Any:
        chosen = self.parameters() if self.uses_number else self.head.parameters()
        return torch.optim.Adam(chosen, lr=self.rate)


def _number_of_the_customer(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The number of the customer, which is different in each row, has an embedding (bug here)."""
    source = source_of(seed)
    rows = torch.randn(1200, 8, generator=source)
    left = (torch.rand(1200, generator=source) < torch.sigmoid(1.5 * scores(rows, source).squeeze(1))).float()
    train, validation = loaders(400, 32, torch.arange(1200), rows, left)
    return TrainingSetup(_Customers(return_dict, not is_fixed), train, validation, {"max_epochs": 30})


def _validation_rises(outcome: Outcome) -> bool:
    lowest = min(outcome.validation)
    return outcome.validation[-1] > 1.3 * lowest and outcome.mean_loss() < 0.5 * outcome.first_loss()


class _Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a long series with rolling features, and the next value."""

    def __init__(self, values: Tensor, keeps_features: bool) -> None:
        self.values = values
        self.features = self.make_features() if keeps_features else None

    def make_features(self) -> Tensor:
        """Returns the value, rolling mean and rolling deviation of the whole series."""
        windows = self.values.unfold(0, 24, 1)
        return torch.stack([self.values[23:], windows.mean(1), windows.std(1)], 1)

    def __len__(self) -> int:
        return 800

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features = self.make_features() if self.features is None else self.features
        start = index * 5
        return features[start : start + 12].flatten(), self.values[start + 23 + 12].unsqueeze(0)


def _features_of_the_whole_series(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Each window computes the rolling features of the whole series anew (bug here)."""
    values = series(seed, 1, 4500, noise=0.2).squeeze(0)
    values = (values - values.mean()) / values.std()
    train = DataLoader(_Windows(values, is_fixed), batch_size=16, shuffle=True)
    module = Supervised(mlp(36, 128, 128, 1), nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train)


def _loading_takes_most_of_the_time(outcome: Outcome) -> bool:
    module: Any = outcome.after
    optimizer = torch.optim.Adam(module.parameters(), lr=0.0)
    batches = iter(outcome.fit.train)
    waited = used = 0.0
    for _ in range(8):
        start = time.perf_counter()
        inputs, target = next(batches)
        loaded = time.perf_counter()
        optimizer.zero_grad()
        functional.mse_loss(module(inputs), target).backward()
        optimizer.step()
        waited, used = waited + loaded - start, used + time.perf_counter() - loaded
    return waited > 8 * used


def _statistics_lag(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Batch norm keeps 99.95 % of its statistics at each step, which is too much for 150 steps (bug here)."""
    rows, target = table(seed, 3600, 12)
    momentum = 0.1 if is_fixed else 5e-4
    network = nn.Sequential(
        nn.Linear(12, 64),
        nn.BatchNorm1d(64, momentum=momentum),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.BatchNorm1d(32, momentum=momentum),
        nn.ReLU(),
        nn.Linear(32, 1),
    )
    train, validation = loaders(400, 64, rows + 12, target)
    module = Supervised(network, nn.MSELoss(), return_dict, lambda p: torch.optim.Adam(p, lr=3e-3))
    return TrainingSetup(module, train, validation)


def _validation_is_far_off(outcome: Outcome) -> bool:
    return outcome.validation[-1] > 5 * outcome.mean_loss()


def _rate_for_single_rows(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The rate of SGD that fits single rows is kept for batches of 1024 (bug here)."""
    rows, target = table(seed, 26000, 16)
    train = batched_loader(1024, rows, target)
    rate = 0.3 if is_fixed else 1e-4
    module = Supervised(mlp(16, 64, 1, between=nn.Tanh), nn.MSELoss(), return_dict, lambda p: torch.optim.SGD(p, rate))
    return TrainingSetup(module, train, None, {"max_epochs": 4})


def _hardly_falls(outcome: Outcome) -> bool:
    return ran(outcome) and outcome.mean_loss() > 0.9 * outcome.first_loss()


_CONSTANT = frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_BETTER_THAN_CONSTANT})

PROGRAMS: list[Program] = [
    Program(
        "ages_in_years_cut_at_months",
        "dense",
        _boundaries_in_months,
        frozenset({Problem.DEGENERATE_TARGETS}),
        _all_levels_are_zero,
        "https://fullstackdev1024.pages.dev/posts/2024-07-06-mastering-the-pandas-cut-function-a-guide-to-error-free-binning",
    ),
    Program(
        "pairs_and_their_differences_drawn_separately",
        "regression",
        _pairs_drawn_twice,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT}),
        explains_less_than(0.1),
        "https://github.com/xudonmao/VMT/issues/1",
    ),
    Program(
        "codes_of_strings_looked_up_by_integers",
        "regression",
        _codes_of_strings,
        _CONSTANT,
        _sales_are_constant,
        "https://github.com/LukasZahradnik/deep-db-learning/issues/16",
    ),
    Program(
        "factors_of_users_and_items_start_at_zero",
        "regression",
        _factors_of_zero,
        _CONSTANT | {Problem.NO_GRADIENT},
        lambda outcome: ran(outcome) and not explained(outcome) >= 0.1,
        "https://github.com/yz93/LAVT-RIS/issues/25",
    ),
    Program(
        "missing_values_coded_as_99999",
        "regression",
        _missing_as_99999,
        frozenset({Problem.INPUT_BADLY_SCALED}),
        _rest_is_large,
        "https://datascience.stackexchange.com/questions/36047/fill-missing-values-and-normalise",
    ),
    Program(
        "embedding_of_the_number_of_each_customer",
        "dense",
        _number_of_the_customer,
        frozenset({Problem.OVERFITTING}),
        _validation_rises,
        "https://www.emergentmind.com/papers/2511.06374",
    ),
    Program(
        "rolling_features_of_the_whole_series_for_each_window",
        "sequence",
        _features_of_the_whole_series,
        frozenset({Problem.DATA_STARVATION}),
        _loading_takes_most_of_the_time,
        "https://yuzhu.run/deep-learning-bottleneck",
    ),
    Program(
        "statistics_of_batch_norm_kept_too_long",
        "regression",
        _statistics_lag,
        frozenset({Problem.BATCH_NORM_STATISTICS_LAG}),
        _validation_is_far_off,
        "https://github.com/Cadene/pretrained-models.pytorch/issues/5",
    ),
    Program(
        "rate_of_single_rows_for_batches_of_a_thousand",
        "regression",
        _rate_for_single_rows,
        frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        _hardly_falls,
        "https://arxiv.org/abs/1706.02677",
    ),
]

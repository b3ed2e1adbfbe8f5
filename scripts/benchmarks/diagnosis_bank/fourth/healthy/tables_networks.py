"""Healthy networks with idle, frozen, clamped or masked parts."""

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
    series,
    source_of,
    table,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    """A block of N-BEATS: layers with a backcast and a forecast."""

    def __init__(self, past: int, future: int) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp(past, 64, 64), nn.ReLU())
        self.backcast, self.forecast = nn.Linear(64, past), nn.Linear(64, future)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(values)
        return values - self.backcast(hidden), self.forecast(hidden)


class _Beats(Steps):
    """Doubly residual blocks. The backcast of the last one is not used."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.blocks = nn.ModuleList([_Block(24, 6) for _ in range(3)])

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, target = batch[0][:, :24], batch[0][:, 24:]
        preds = torch.zeros_like(target)
        for block in self.blocks:
            values, forecast = block(values)
            preds = preds + forecast
        return functional.l1_loss(preds, target), preds, target


def _last_backcast(seed: int, return_dict: bool) -> TrainingSetup:
    """The layer of the last backcast has no gradient, as in the published network."""
    train, validation = loaders(300, 32, series(seed, 2700, 30))
    return TrainingSetup(_Beats(return_dict), train, validation, {"max_epochs": 8})


class _Codes(Steps):
    """A variational autoencoder with more codes than the rows need."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=2e-3)
        self.encoder, self.decoder = mlp(20, 64, 20, between=nn.Tanh), mlp(10, 64, 20, between=nn.Tanh)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (rows,) = batch
        center, logvar = self.encoder(rows).chunk(2, dim=1)
        code = center + torch.exp(logvar / 2) * torch.randn_like(center) if self.training else center
        preds = self.decoder(code)
        divergence = -0.5 * (1 + logvar - center.square() - logvar.exp()).sum(1).mean()
        return 2 * (preds - rows).square().sum(1).mean() + divergence, preds, rows


def _rows_of_two_factors(seed: int, return_dict: bool) -> TrainingSetup:
    """Twenty columns depend on two factors, so most of the ten codes follow the prior."""
    source = source_of(seed)
    factors = torch.randn(3600, 2, generator=source)
    rows = factors @ torch.randn(2, 20, generator=source) + 0.5 * torch.randn(3600, 20, generator=source)
    train, validation = loaders(400, 32, rows)
    return TrainingSetup(_Codes(return_dict), train, validation, {"max_epochs": 8})


def _uses_few_codes(outcome: Outcome) -> bool:
    module: Any = outcome.after
    center, _ = module.encoder(torch.cat([rows for (rows,) in outcome.fit.validation or ()])).chunk(2, dim=1)
    return ran(outcome) and explained(outcome) > 0.7 and int((center.std(0) > 0.3).sum()) <= 5


class _Anomalies(Steps):
    """An autoencoder of sensor rows with two codes."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=3e-3)
        self.network = mlp(16, 32, 3, 32, 16, between=nn.ELU)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows = batch[0]
        preds = self.network(rows)
        return functional.mse_loss(preds, rows), preds, rows


def _anomalies_in_validation_only(seed: int, return_dict: bool) -> TrainingSetup:
    """A third of the validation rows are anomalies, whose error stays large."""
    source = source_of(seed)
    rows = scores(torch.randn(3200, 3, generator=source), source, 16)
    strange = torch.cat([rows[:300, :8], rows[300:600, 8:]], 1) + 0.5 * torch.randn(300, 16, generator=source)
    held_out = torch.cat([rows[2600:], 1.5 * strange])
    is_strange = torch.cat([torch.zeros(600), torch.ones(300)])
    train = loader(32, rows[:2600], torch.zeros(2600))
    return TrainingSetup(
        _Anomalies(return_dict), train, loader(100, held_out, is_strange, shuffle=False), {"max_epochs": 8}
    )


def _detects_anomalies(outcome: Outcome) -> bool:
    _, preds, rows = evaluate(outcome)
    errors = (preds - rows).square().mean(1)
    ranks = (errors[600:].unsqueeze(1) > errors[:600].unsqueeze(0)).float().mean()
    return ran(outcome) and float(ranks) > 0.95 and outcome.validation[-1] > 3 * outcome.mean_loss()


class _Temperature(Steps):
    """A trained network that is frozen, and a temperature for its logits."""

    def __init__(self, return_dict: bool, network: nn.Module) -> None:
        super().__init__(return_dict)
        self.network = network.requires_grad_(requires_grad=False)
        self.temperature = nn.Parameter(torch.ones(1))

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, kinds = batch
        logits = self.network(rows) / self.temperature
        return functional.cross_entropy(logits, kinds), logits, kinds

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.temperature], lr=0.05)


def _only_a_temperature(seed: int, return_dict: bool) -> TrainingSetup:
    """The only trained weight is a temperature. The network was trained before on few rows until it was too certain."""
    rows, values = table(seed, 2800, 12, 4, noise=0.5)
    kinds = values.argmax(1)
    network = mlp(12, 64, 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        functional.cross_entropy(network(rows[:800]), kinds[:800]).backward()
        optimizer.step()
    train, validation = loaders(500, 50, rows[800:], kinds[800:])
    return TrainingSetup(_Temperature(return_dict, network), train, validation, {"max_epochs": 8})


def _is_calibrated(outcome: Outcome) -> bool:
    module: Any = outcome.after
    return ran(outcome) and float(module.temperature) > 1.5 and outcome.validation[-1] < 0.8 * outcome.first_loss(10)


class _Flow(Steps):
    """Coupling layers whose last layers start at zero, so that the flow starts as the identity."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=3e-3)
        self.layers = nn.ModuleList([mlp(2, 48, 48, 4) for _ in range(6)])
        for layer in self.layers:
            nn.init.zeros_(layer[-1].weight)  # pyright: ignore[reportArgumentType, reportIndexIssue]
            nn.init.zeros_(layer[-1].bias)  # pyright: ignore[reportArgumentType, reportIndexIssue]

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (points,) = batch
        codes, volume = points, torch.zeros(len(points))
        for number, layer in enumerate(self.layers):
            mask = torch.tensor([1.0, 0.0]) if number % 2 == 0 else torch.tensor([0.0, 1.0])
            scale, shift = layer(codes * mask).chunk(2, dim=1)
            scale = torch.tanh(scale) * (1 - mask)
            codes = codes * torch.exp(scale) + shift * (1 - mask)
            volume = volume + scale.sum(1)
        loss = (0.5 * codes.square().sum(1) + math.log(2 * math.pi) - volume).mean()
        return loss, codes, points


def _flow_starts_as_identity(seed: int, return_dict: bool) -> TrainingSetup:
    """The first layers of each coupling have no gradient in the first step."""
    points = torch.from_numpy(make_moons(3600, noise=0.07, random_state=seed)[0]).float()
    train, validation = loaders(400, 64, (points - points.mean(0)) / points.std(0))
    return TrainingSetup(_Flow(return_dict), train, validation, {"max_epochs": 12})


class _Monotone(Steps):
    """A network that rises in each column, as negative weights are set to zero after each step."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.network = mlp(6, 48, 48, 1, between=nn.Tanh)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, target = batch
        preds = self.network(rows)
        return functional.mse_loss(preds, target), preds, target

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                if name.endswith("weight"):
                    weight.clamp_(min=0)


def _weights_clamped_at_zero(seed: int, return_dict: bool) -> TrainingSetup:
    """Many weights are exactly zero and stay there."""
    source = source_of(seed)
    rows = torch.randn(3600, 6, generator=source)
    slopes = torch.rand(6, generator=source) + 0.2
    values = (torch.tanh(2 * rows) @ slopes).unsqueeze(1) + 0.5 * (rows @ slopes.flip(0)).unsqueeze(1)
    values = (values - values.mean()) / values.std() + 0.1 * torch.randn(3600, 1, generator=source)
    train, validation = loaders(400, 32, rows, values)
    return TrainingSetup(_Monotone(return_dict), train, validation, {"max_epochs": 6})


class _PaddedGraphs(Steps):
    """Graph convolutions over padded nodes, which are masked in the mean."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=4e-3)
        self.kind, self.first, self.second = nn.Embedding(7, 16, padding_idx=0), nn.Linear(16, 48), nn.Linear(48, 48)
        self.head = nn.Linear(48, 1)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        nodes, adjacency, target = batch
        is_node = (nodes > 0).unsqueeze(2).float()
        weights = adjacency / adjacency.sum(2, keepdim=True).clamp(min=1)
        hidden = self.kind(nodes)
        for layer in (self.first, self.second):
            hidden = functional.relu(layer(hidden + weights @ hidden)) * is_node
        preds = self.head(hidden.sum(1) / is_node.sum(1))
        return functional.mse_loss(preds, target), preds, target


def _padded_graphs(seed: int, return_dict: bool) -> TrainingSetup:
    """Graphs have four to twenty nodes, so most rows of a batch are zero."""
    source = source_of(seed)
    nodes = torch.randint(1, 7, (2800, 20), generator=source)
    sizes = torch.randint(4, 21, (2800, 1), generator=source).clamp(
        max=torch.randint(4, 21, (2800, 1), generator=source)
    )
    nodes = nodes * (torch.arange(20) < sizes)
    edges = torch.triu(torch.rand(2800, 20, 20, generator=source) < 0.3, 1).float()
    exists = (nodes > 0).float()
    adjacency = (edges + edges.transpose(1, 2)) * exists.unsqueeze(1) * exists.unsqueeze(2)
    charge = torch.cat([torch.zeros(1), torch.randn(6, generator=source)])[nodes]
    around = (adjacency @ charge.unsqueeze(2)).squeeze(2) / adjacency.sum(2).clamp(min=1)
    values = ((charge + charge * around).sum(1) / exists.sum(1)).unsqueeze(1)
    train, validation = loaders(400, 32, nodes, adjacency, (values - values.mean()) / values.std())
    return TrainingSetup(_PaddedGraphs(return_dict), train, validation, {"max_epochs": 6})


def _sparsemax(values: Tensor) -> Tensor:
    ordered = values.sort(dim=1, descending=True).values
    numbers = torch.arange(1, values.shape[1] + 1)
    sums = ordered.cumsum(1) - 1
    size = (numbers * ordered > sums).sum(1, keepdim=True)
    return functional.relu(values - sums.gather(1, size - 1) / size)


class _Attentive(Steps):
    """Two steps that select columns by sparse masks."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.norm = nn.BatchNorm1d(30)
        self.selects = nn.ModuleList([nn.Linear(30, 30), nn.Linear(24, 30)])
        self.transforms = nn.ModuleList([nn.Linear(30, 48), nn.Linear(30, 48)])
        self.head = nn.Linear(24, 3)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, kinds = batch
        rows = self.norm(rows)
        state, total, left = rows, torch.zeros(len(rows), 24), torch.ones_like(rows)
        for select, transform in zip(self.selects, self.transforms, strict=True):
            mask = _sparsemax(select(state) * left)
            left = left * (1.3 - mask)
            state = functional.glu(transform(rows * mask * 5), dim=1)
            total = total + functional.relu(state)
        logits = self.head(total)
        return functional.cross_entropy(logits, kinds), logits, kinds


def _columns_selected_by_sparse_masks(seed: int, return_dict: bool) -> TrainingSetup:
    """Four of thirty columns matter, and the masks of most others become exactly zero."""
    rows, values = table(seed, 3600, 4, 3, noise=0.1)
    others = torch.randn(3600, 26, generator=source_of(seed + 9))
    train, validation = loaders(400, 32, torch.cat([rows, others], 1), values.argmax(1))
    return TrainingSetup(_Attentive(return_dict), train, validation, {"max_epochs": 8})


class _ScaledForecast(Steps):
    """An LSTM that is fed scaled values and predicts the next ones by a Student law."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict, rate=5e-3)
        self.cell = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, 3)

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (values,) = batch
        scale = values[:, :8].abs().mean(1, keepdim=True) + 1e-3
        hidden, _ = self.cell((values[:, :-1] / scale).unsqueeze(2))
        center, width, freedom = self.head(hidden[:, 7:]).unbind(2)
        law = torch.distributions.StudentT(
            2 + functional.softplus(freedom), center * scale, functional.softplus(width) * scale
        )
        target = values[:, 8:]
        return -law.log_prob(target).mean(), law.mean, target


def _shops_of_all_sizes(seed: int, return_dict: bool) -> TrainingSetup:
    """Series go from tenths to thousands. The loss is dominated by the logarithm of their size."""
    source = source_of(seed)
    sizes = 10 ** (4 * torch.rand(1200, 1, generator=source) - 1)
    train, validation = loaders(200, 32, sizes * (2 + series(seed, 1200, 28)))
    return TrainingSetup(_ScaledForecast(return_dict), train, validation, {"max_epochs": 10, "gradient_clip_val": 5.0})


PROGRAMS: list[Program] = [
    Program(
        "backcast_of_the_last_block_is_not_used",
        "sequence",
        _last_backcast,
        frozenset(),
        explains(0.85),
        "https://github.com/unit8co/darts/pull/347",
    ),
    Program(
        "ten_codes_for_rows_of_two_factors",
        "dense",
        _rows_of_two_factors,
        frozenset(),
        _uses_few_codes,
        "https://arxiv.org/abs/1312.6114",
    ),
    Program(
        "anomalies_in_the_validation_rows_only",
        "dense",
        _anomalies_in_validation_only,
        frozenset(),
        _detects_anomalies,
        "https://blog.keras.io/building-autoencoders-in-keras.html",
    ),
    Program(
        "temperature_of_a_frozen_network",
        "dense",
        _only_a_temperature,
        frozenset(),
        _is_calibrated,
        "https://github.com/gpleiss/temperature_scaling/issues/17",
    ),
    Program(
        "couplings_start_as_the_identity",
        "dense",
        _flow_starts_as_identity,
        frozenset(),
        lambda outcome: ran(outcome) and outcome.validation[-1] < 2.1,
        "https://arxiv.org/abs/1807.03039",
    ),
    Program(
        "negative_weights_set_to_zero_after_each_step",
        "regression",
        _weights_clamped_at_zero,
        frozenset(),
        explains(0.9),
        "https://arxiv.org/abs/1709.06680",
    ),
    Program(
        "graphs_padded_to_twenty_nodes",
        "dense",
        _padded_graphs,
        frozenset(),
        explains(0.6),
        "https://arxiv.org/abs/1806.08804",
    ),
    Program(
        "columns_selected_by_sparse_masks",
        "dense",
        _columns_selected_by_sparse_masks,
        frozenset(),
        is_accurate(0.8),
        "https://arxiv.org/abs/1908.07442",
    ),
    Program(
        "sales_of_shops_of_all_sizes",
        "sequence",
        _shops_of_all_sizes,
        frozenset(),
        explains(0.8),
        "https://arxiv.org/abs/1704.04110",
    ),
]

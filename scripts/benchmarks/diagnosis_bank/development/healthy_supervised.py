"""Healthy supervised runs with unusual internal values."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.development.datasets import (
    blobs,
    cancer,
    commonest_token,
    curve,
    diabetes,
    digit_rows,
    digits,
    line,
    make_generator,
    make_loader,
    signals,
    split,
    waves,
)
from diagnosis_bank.development.measures import accuracy, activations, chance_loss, ends_below, step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem

NOTHING: frozenset[Problem] = frozenset()


def plain_rows(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3)
    )
    return TrainingSetup(module, *split(digit_rows(), 32, seed))


def raw_images(seed: int, return_dict: bool) -> TrainingSetup:
    """Raw pixels from 0 to 255 into batch norm, and a learning rate with warm restarts."""
    torch.manual_seed(seed)
    pixels, label = digits()
    network = nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )

    def optimizer(parameters: Any) -> Any:
        chosen = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(chosen, T_0=30)
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": restarts, "interval": "step"}}

    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, optimizer)
    return TrainingSetup(module, *split((pixels.view(-1, 1, 8, 8) * (255 / 16), label), 32, seed))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.back.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.back(F.gelu(self.wide(self.norm(hidden))))


def zero_branches(seed: int, return_dict: bool) -> TrainingSetup:
    """Residual branches initialized to zero, and gradients accumulated over four batches."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 48), *[_Block(48) for _ in range(4)], nn.LayerNorm(48), nn.Linear(48, 10))
    module = Supervised(
        network, F.cross_entropy, return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)
    )
    return TrainingSetup(module, *split(digit_rows(), 8, seed), trainer={"accumulate_grad_batches": 4})


def clipped_lstm(seed: int, return_dict: bool) -> TrainingSetup:
    """Clips gradients at every step."""
    torch.manual_seed(seed)
    module = Supervised(
        _LastState(), nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
    )
    return TrainingSetup(
        module, *split(commonest_token(seed), 32, seed), trainer={"gradient_clip_val": 0.1, "max_epochs": 4}
    )


class _LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.recurrent = nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(self.embedding(tokens))
        return self.head(hidden[:, -1])


class _Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(wave)
        return self.head(hidden[:, -1])


def forecast(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Supervised(
        _Forecaster(), nn.HuberLoss(), return_dict, lambda parameters: torch.optim.RMSprop(parameters, lr=3e-3)
    )
    return TrainingSetup(module, *split(waves(seed), 32, seed))


class _Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 24)
        self.position = nn.Parameter(0.02 * torch.randn(12, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(tokens) + self.position).mean(1))


def warmed_up(seed: int, return_dict: bool) -> TrainingSetup:
    """A learning rate that starts at zero, and label smoothing."""
    torch.manual_seed(seed)

    def optimizer(parameters: Any) -> Any:
        chosen = torch.optim.AdamW(parameters, lr=5e-3)
        warm_up = torch.optim.lr_scheduler.LambdaLR(chosen, lambda step: min(1.0, step / 30))
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}

    module = Supervised(_Attentive(), nn.CrossEntropyLoss(label_smoothing=0.1), return_dict, optimizer)
    return TrainingSetup(module, *split(commonest_token(seed), 32, seed))


def noisy_patients(seed: int, return_dict: bool) -> TrainingSetup:
    """Few rows, and a best loss that is about half the loss of the mean."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
    module = Supervised(
        network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)
    )
    return TrainingSetup(module, *split(diabetes(), 12, seed), trainer={"max_epochs": 5})


def noisy_labels(seed: int, return_dict: bool) -> TrainingSetup:
    """Three of ten labels are random."""
    torch.manual_seed(seed)
    table, label = blobs(seed, 2400)
    source = make_generator(seed + 1)
    drawn = torch.randint(4, label.shape, generator=source)
    label = torch.where(torch.rand(label.shape, generator=source) < 0.3, drawn, label)
    network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
    )
    return TrainingSetup(module, *split((table, label), 32, seed))


def heavy_dropout(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Dropout(0.6),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Dropout(0.6),
        nn.Linear(128, 10),
    )
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=2e-3)
    )
    return TrainingSetup(module, *split(digit_rows(), 32, seed))


def summed(seed: int, return_dict: bool) -> TrainingSetup:
    """A summed loss with a suitable rate, and targets around 200 with a matching initial bias."""
    torch.manual_seed(seed)
    table, target = curve(seed)
    network = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    nn.init.constant_(network[-1].bias, 200.0)
    module = Supervised(
        network,
        nn.MSELoss(reduction="sum"),
        return_dict,
        lambda parameters: torch.optim.SGD(parameters, lr=1e-4, momentum=0.9),
    )
    return TrainingSetup(module, *split((table, 200 + 5 * target), 64, seed), trainer={"max_epochs": 5})


def tiny_batches(seed: int, return_dict: bool) -> TrainingSetup:
    """Batches of four rows, and an embedding most of whose rows never occur."""
    torch.manual_seed(seed)
    tokens, label = commonest_token(seed, 320, length=6, vocabulary=6)
    network = nn.Sequential(nn.EmbeddingBag(200, 16, mode="mean"), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
    )
    return TrainingSetup(module, make_loader(tokens, label, size=4, seed=seed))


def exact_line(seed: int, return_dict: bool) -> TrainingSetup:
    """Noise-free data, learned to the precision of float32."""
    torch.manual_seed(seed)
    module = Supervised(
        nn.Linear(5, 1), nn.MSELoss(), return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5)
    )
    return TrainingSetup(module, make_loader(*line(seed, noise=0.0), size=32, seed=seed))


class _Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(64, 512)
        self.act = nn.ReLU()
        self.head = nn.Linear(512, 10)
        nn.init.normal_(self.wide.weight, std=0.125)
        nn.init.constant_(self.wide.bias, -1.2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.wide(pixels)))


def sparse_units(seed: int, return_dict: bool) -> TrainingSetup:
    """Every unit is inactive for nine of ten rows, but none for all."""
    torch.manual_seed(seed)
    module = Supervised(_Sparse(), F.cross_entropy, return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    return TrainingSetup(module, *split(digit_rows(), 32, seed))


def rare_class(seed: int, return_dict: bool) -> TrainingSetup:
    """One of twenty rows belongs to the other class, and the network finds it."""
    torch.manual_seed(seed)
    source = make_generator(seed)
    label = (torch.rand(3200, generator=source) < 0.05).long()
    table = torch.randn(3200, 8, generator=source)
    table[:, 0] += 4 * label
    table[:, 1] *= 1 + 2 * label
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
    )
    return TrainingSetup(module, *split((table, label), 64, seed), trainer={"max_epochs": 4})


def edge_of_stability(seed: int, return_dict: bool) -> TrainingSetup:
    """A high rate: the loss rises as often as it falls, but decreases strongly."""
    torch.manual_seed(seed)
    table, label = cancer()
    network = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.3))
    table, target = table[:512], 2 * label[:512].float() - 1
    repeated = make_loader(table.repeat(10, 1), target.repeat(10), size=256, seed=seed)
    return TrainingSetup(module, repeated, trainer={"max_epochs": 5})


def slow_and_steady(seed: int, return_dict: bool) -> TrainingSetup:
    """A low rate with a sufficient number of steps."""
    torch.manual_seed(seed)
    inputs, label = signals()
    network = nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, 24, 5, stride=2),
        nn.GELU(),
        nn.Conv1d(24, 24, 5, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(168, 10),
    )
    module = Supervised(network, F.cross_entropy, return_dict, lambda parameters: torch.optim.Adam(parameters, lr=7e-4))
    return TrainingSetup(module, *split((inputs, label), 32, seed), trainer={"max_epochs": 14})


class _Tasks(pl.LightningModule):
    """Two tasks, and a third head that no loss uses yet."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.trunk = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.value = nn.Linear(48, 1)
        self.sign = nn.Linear(48, 1)
        self.later = nn.Linear(48, 3)

    def forward(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.trunk(table)
        return self.value(hidden), self.sign(hidden)

    def _loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        table, target = batch
        value, sign = self(table)
        loss = F.mse_loss(value, target) + 0.3 * F.binary_cross_entropy_with_logits(sign, (target > 0).float())
        return loss, value

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, value = self._loss(batch)
        return step_output(self.return_dict, loss, value, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def two_tasks(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Tasks(return_dict), *split(curve(seed), 32, seed))


def _knows(outcome: Outcome) -> bool:
    return ends_below(outcome, 0.6 * chance_loss(outcome)) and accuracy(outcome) > 0.8


def _sparse_and_knows(outcome: Outcome) -> bool:
    (layer,) = activations(outcome, nn.ReLU)
    rest = float((layer <= 0).float().mean())
    return _knows(outcome) and rest > 0.85 and not bool((layer <= 0).all(0).float().mean() > 0.02)


def _finds_the_rare(outcome: Outcome) -> bool:
    inputs, label = outcome.fit.train.dataset.tensors  # type: ignore[attr-defined]
    predicted = outcome.after.eval()(inputs).argmax(1)
    return bool(predicted[label == 1].float().mean() > 0.7) and ends_below(outcome, 0.5 * chance_loss(outcome))


def _healthy(name: str, domain: Any, build: Any, took_effect: Any, source: str) -> Program:
    return Program(name=name, domain=domain, build=build, problems=NOTHING, took_effect=took_effect, source=source)


PROGRAMS: list[Program] = [
    _healthy("plain_network_on_rows", "dense", plain_rows, _knows, "constructed: a default setup"),
    _healthy(
        "raw_pixels_into_batch_norm_with_warm_restarts",
        "convolutional",
        raw_images,
        _knows,
        "https://arxiv.org/abs/1608.03983",
    ),
    _healthy(
        "residual_branches_start_from_zero_and_four_batches_make_a_step",
        "dense",
        zero_branches,
        _knows,
        "https://arxiv.org/abs/1901.09321",
    ),
    _healthy(
        "lstm_with_gradients_that_are_always_clipped",
        "sequence",
        clipped_lstm,
        lambda outcome: ends_below(outcome, 0.9),
        "https://nano-gpt.com/blog/gradient-clipping-rnn-training-why-it-matters",
    ),
    _healthy(
        "recurrent_forecast",
        "sequence",
        forecast,
        lambda outcome: ends_below(outcome, 0.05),
        "constructed: a healthy forecast",
    ),
    _healthy(
        "transformer_is_warmed_up_from_a_rate_of_zero",
        "sequence",
        warmed_up,
        lambda outcome: ends_below(outcome, 0.9),
        "https://github.com/AkihikoWatanabe/paper_notes/issues/2142",
    ),
    _healthy(
        "few_noisy_patients",
        "regression",
        noisy_patients,
        lambda outcome: ends_below(outcome, 0.65),
        "constructed: a loss close to that of the mean, the minimum for the data",
    ),
    _healthy(
        "three_labels_of_ten_are_drawn_anew",
        "dense",
        noisy_labels,
        lambda outcome: ends_below(outcome, 1.05),
        "constructed: labels with human errors",
    ),
    _healthy("dropout_of_six_tenths", "dense", heavy_dropout, _knows, "constructed: noisy but healthy training"),
    _healthy(
        "summed_loss_with_a_rate_to_fit_and_targets_around_200",
        "regression",
        summed,
        lambda outcome: ends_below(outcome, 0.4 * 64 * 25),
        "https://github.com/shubham-goel/4D-Humans/issues/85",
    ),
    _healthy(
        "batches_of_four_and_embeddings_that_never_occur",
        "sequence",
        tiny_batches,
        lambda outcome: ends_below(outcome, 0.7) and accuracy(outcome) > 0.7,
        "constructed: a vocabulary with unused words",
    ),
    _healthy(
        "line_is_learned_to_the_last_digit",
        "regression",
        exact_line,
        lambda outcome: ends_below(outcome, 1e-11),
        "constructed: data without noise",
    ),
    _healthy(
        "units_rest_for_nine_rows_of_ten",
        "dense",
        sparse_units,
        _sparse_and_knows,
        "constructed: sparse but not dead units",
    ),
    _healthy(
        "one_row_of_twenty_is_of_the_other_class",
        "dense",
        rare_class,
        _finds_the_rare,
        "constructed: the network is better than a good constant prediction",
    ),
    _healthy(
        "rate_at_the_edge_of_stability",
        "regression",
        edge_of_stability,
        lambda outcome: ends_below(outcome, 0.1),
        "https://arxiv.org/abs/2103.00065",
    ),
    _healthy(
        "slow_and_steady",
        "sequence",
        slow_and_steady,
        lambda outcome: ends_below(outcome, 1.5),
        "constructed: a low rate with sufficient steps",
    ),
    _healthy(
        "two_tasks_and_a_head_for_later",
        "regression",
        two_tasks,
        lambda outcome: ends_below(outcome, 0.6),
        "https://github.com/chemprop/chemprop/issues/853",
    ),
]

"""Healthy classifiers with unusual symptoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.held_out.datasets import (
    clouds,
    counts,
    digit_images,
    digits,
    load_table,
    make_loader,
    orders,
    repeated,
    seeded,
    signals,
)
from diagnosis_bank.held_out.measures import accuracy, activations, predictions
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

CONSTRUCTED = "constructed: a healthy training run"


def _half(inputs: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shuffles, and uses four fifths for training and the rest for validation."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    cut = 4 * len(inputs) // 5
    return inputs[order[:cut]], targets[order[:cut]], inputs[order[cut:]], targets[order[cut:]]


@seeded
def _smoothed_labels(seed: int, return_dict: bool) -> TrainingSetup:
    pixels, digit, other_pixels, other_digit = _half(*digits(), seed)
    network = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    return TrainingSetup(
        Supervised(
            network,
            nn.CrossEntropyLoss(label_smoothing=0.1),
            return_dict,
            lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
        ),
        make_loader(pixels, digit, 32, seed),
        make_loader(other_pixels, other_digit, 100, seed, shuffle=False),
    )


@seeded
def _raw_pixels(seed: int, return_dict: bool) -> TrainingSetup:
    pixels, digit = digits()
    network = nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    return TrainingSetup(
        Supervised(
            network,
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4),
        ),
        make_loader(255 * pixels.view(-1, 1, 8, 8), digit, 32, seed),
    )


class _Recurrent(nn.Module):
    """An LSTM with an embedding whose vocabulary is far larger than the words in the data."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 2)

    def forward(self, sentences: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(sentences))[0].mean(dim=1))


@seeded
def _unseen_words(seed: int, return_dict: bool) -> TrainingSetup:
    sentences, kind, other_sentences, other_kind = _half(*counts(seed, 2000), seed)
    return TrainingSetup(
        Supervised(
            _Recurrent(vocabulary=200),
            functional.cross_entropy,
            return_dict,
            lambda parameters: torch.optim.RMSprop(parameters, lr=3e-3),
        ),
        make_loader(sentences, kind, 32, seed),
        make_loader(other_sentences, other_kind, 100, seed, shuffle=False),
        trainer={"gradient_clip_val": 0.05},
    )


class _WarmedUp(pl.LightningModule):
    """A pre-norm transformer with a warm-up from zero and a decay."""

    def __init__(self, return_dict: bool, steps: int, width: int = 24) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, width)
        self.positions = nn.Embedding(12, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=2, dim_feedforward=48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)
        self.return_dict = return_dict
        self.steps = steps

    def forward(self, sentences: Tensor) -> Tensor:
        inner = self.tokens(sentences) + self.positions.weight
        return self.head(self.norm(self.encoder(inner)).mean(dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        sentences, first = batch
        logits = self(sentences)
        loss = functional.cross_entropy(logits, first)
        self.log("train_loss", loss)
        return {"loss": loss, "preds": logits, "target": first} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=6e-3)
        schedule = lr_scheduler.LambdaLR(
            optimizer, lambda step: min(step / 30, max(0.0, (self.steps - step) / (self.steps - 30)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@seeded
def _warmup_from_zero(seed: int, return_dict: bool) -> TrainingSetup:
    sentences, first = orders(seed, 1920)
    return TrainingSetup(
        _WarmedUp(return_dict, steps=240), make_loader(sentences, first, 32, seed), trainer={"max_epochs": 4}
    )


class _Frozen(nn.Module):
    """A frozen convolutional body with a new head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def _pretrained(images: Tensor, digit: Tensor) -> nn.Sequential:
    """Returns a body pretrained to classify even and odd digits."""
    body = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    probe = nn.Linear(64, 2)
    optimizer = torch.optim.Adam([*body.parameters(), *probe.parameters()], lr=3e-3)
    for _ in range(4):
        for first in range(0, len(images), 64):
            part = slice(first, first + 64)
            optimizer.zero_grad()
            functional.cross_entropy(probe(body(images[part])), digit[part] % 2).backward()
            optimizer.step()
    return body


@seeded
def _frozen_body(seed: int, return_dict: bool) -> TrainingSetup:
    images, digit = digit_images()
    return TrainingSetup(
        Supervised(
            _Frozen(_pretrained(images, digit)),
            nn.CrossEntropyLoss(),
            return_dict,
            lambda parameters: torch.optim.Adam([p for p in parameters if p.requires_grad], lr=1e-2),
        ),
        make_loader(images, digit, 32, seed),
    )


@seeded
def _noisy_labels(seed: int, return_dict: bool) -> TrainingSetup:
    inputs, kind = clouds(seed, 4000, features=10, classes=4)
    generator = torch.Generator().manual_seed(seed)
    kind = torch.where(
        torch.rand(4000, generator=generator) < 0.4, torch.randint(4, (4000,), generator=generator), kind
    )
    network = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.05)
        ),
        make_loader(inputs[:3200], kind[:3200], 64, seed),
        make_loader(inputs[3200:], kind[3200:], 100, seed, shuffle=False),
    )


@seeded
def _heavy_dropout(seed: int, return_dict: bool) -> TrainingSetup:
    images, digit, other_images, other_digit = _half(*digit_images(), seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.7),
        nn.Linear(512, 10),
    )
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=2e-3)
        ),
        make_loader(images, digit, 32, seed),
        make_loader(other_images, other_digit, 100, seed, shuffle=False),
    )


class _Residual(nn.Module):
    """A residual convolution whose last scale is initialized to zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, images: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(images)))
        return functional.relu(images + self.norm2(self.conv2(inner)))


@seeded
def _zero_residuals(seed: int, return_dict: bool) -> TrainingSetup:
    images, digit = digit_images()
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        _Residual(12),
        nn.MaxPool2d(2),
        _Residual(12),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    return TrainingSetup(
        Supervised(
            network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)
        ),
        make_loader(images, digit, 16, seed),
        trainer={"accumulate_grad_batches": 4, "max_epochs": 2},
    )


@seeded
def _sparse_units(seed: int, return_dict: bool) -> TrainingSetup:
    pixels, digit = digits()
    pixels = 2 * (pixels - pixels.mean(0))
    wide = nn.Linear(64, 256)
    with torch.no_grad():
        wide.bias.copy_(-(pixels @ wide.weight.T).quantile(0.96, dim=0))
    network = nn.Sequential(wide, nn.ReLU(), nn.Linear(256, 10))
    return TrainingSetup(
        Supervised(
            network, functional.cross_entropy, return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.25)
        ),
        make_loader(pixels, digit, 32, seed),
    )


@seeded
def _rare_class(seed: int, return_dict: bool) -> TrainingSetup:
    generator = torch.Generator().manual_seed(seed)
    rare = torch.rand(4800, 1, generator=generator) < 0.05
    inputs = torch.randn(4800, 8, generator=generator) + rare * torch.tensor([2.2, -2.2, 1.8, 0, 0, 0, 0, 0])
    network = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1))
    return TrainingSetup(
        Supervised(
            network, nn.BCEWithLogitsLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=5e-3)
        ),
        make_loader(inputs, rare.float(), 96, seed),
    )


class _TwoTasks(pl.LightningModule):
    """Predicts the class of a signal and its parity. A third head is unused."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            nn.Conv1d(1, 16, 5, stride=2),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 32, 3, stride=2),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.kind = nn.Linear(32 * 8, 10)
        self.even = nn.Linear(32 * 8, 1)
        self.later = nn.Linear(32 * 8, 4)
        self.return_dict = return_dict

    def forward(self, signal: Tensor) -> Tensor:
        return self.kind(self.body(signal))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        signal, kind = batch
        features = self.body(signal)
        scores = self.kind(features)
        even = functional.binary_cross_entropy_with_logits(self.even(features).squeeze(1), (kind % 2 == 0).float())
        loss = functional.cross_entropy(scores, kind) + 0.5 * even
        self.log_dict({"even": even, "loss": loss})
        return {"loss": loss, "preds": scores, "target": kind} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@seeded
def _two_tasks(seed: int, return_dict: bool) -> TrainingSetup:
    signal, kind = signals()
    return TrainingSetup(_TwoTasks(return_dict), make_loader(signal, kind, 32, seed), trainer={"max_epochs": 4})


@seeded
def _edge_of_stability(seed: int, return_dict: bool) -> TrainingSetup:
    inputs, kind = clouds(seed, 5120, features=12, classes=6, spread=1.3)
    network = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 6))
    return TrainingSetup(
        Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.SGD(parameters, lr=1.7)),
        make_loader(inputs, kind, 256, seed),
        trainer={"max_epochs": 6},
    )


@seeded
def _four_at_a_time(seed: int, return_dict: bool) -> TrainingSetup:
    inputs, species = repeated(*load_table("iris"), 2)
    network = nn.Sequential(nn.Linear(4, 16), nn.ELU(), nn.Linear(16, 3), nn.LogSoftmax(dim=1))
    return TrainingSetup(
        Supervised(network, nn.NLLLoss(), return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.05)),
        make_loader(inputs, species, 4, seed),
        trainer={"max_epochs": 4},
    )


def _right(share: float) -> Callable[[Outcome], bool]:
    """Returns a check that the accuracy on the training inputs reaches this share."""
    return lambda outcome: outcome.error is None and accuracy(outcome) >= share


def _sparse_and_alive(outcome: Outcome) -> bool:
    """Returns True if digits are classified, units are mostly zero, and almost all units are sometimes active."""
    active = activations(outcome, outcome.after.get_submodule("network.1")) > 0
    alive = (active.float().mean(0) > 0.005).float().mean()
    return accuracy(outcome) > 0.9 and active.float().mean().item() < 0.15 and alive.item() > 0.95


def _finds_the_rare(outcome: Outcome) -> bool:
    """Returns True if most of the rare class is found with few false positives."""
    scores, rare = predictions(outcome)
    positive, true_positive = scores > 0, (scores > 0) & (rare > 0.5)
    return bool(true_positive.sum() > 0.6 * rare.sum()) and bool(true_positive.sum() > 0.7 * positive.sum())


PROGRAMS: list[Program] = [
    Program("mlp_with_smoothed_labels", "dense", _smoothed_labels, frozenset(), _right(0.93), CONSTRUCTED),
    Program("batch_norm_takes_raw_pixels", "convolutional", _raw_pixels, frozenset(), _right(0.95), CONSTRUCTED),
    Program(
        "lstm_whose_vocabulary_is_mostly_unseen_and_whose_gradient_is_always_clipped",
        "sequence",
        _unseen_words,
        frozenset(),
        _right(0.9),
        CONSTRUCTED,
    ),
    Program(
        "transformer_warmed_up_from_a_rate_of_zero",
        "sequence",
        _warmup_from_zero,
        frozenset(),
        _right(0.9),
        CONSTRUCTED,
    ),
    Program("new_head_on_a_frozen_body", "convolutional", _frozen_body, frozenset(), _right(0.85), CONSTRUCTED),
    Program(
        "two_labels_in_five_are_drawn_at_random",
        "dense",
        _noisy_labels,
        frozenset(),
        lambda outcome: outcome.mean_loss() < 1.05 and accuracy(outcome) > 0.65,  # ln 4 is 1.39, all others right: 0.7
        CONSTRUCTED,
    ),
    Program("dropout_of_seven_tenths", "convolutional", _heavy_dropout, frozenset(), _right(0.93), CONSTRUCTED),
    Program(
        "residual_branches_start_at_zero_and_gradients_are_accumulated",
        "convolutional",
        _zero_residuals,
        frozenset(),
        _right(0.9),
        "https://github.com/tensorpack/tensorpack/issues/420",
    ),
    Program("wide_layer_is_nine_tenths_zeros", "dense", _sparse_units, frozenset(), _sparse_and_alive, CONSTRUCTED),
    Program("one_in_twenty_is_of_the_rare_class", "dense", _rare_class, frozenset(), _finds_the_rare, CONSTRUCTED),
    Program("two_tasks_and_a_head_for_later", "sequence", _two_tasks, frozenset(), _right(0.55), CONSTRUCTED),
    Program(
        "rate_at_the_edge_of_stability",
        "dense",
        _edge_of_stability,
        frozenset(),
        _right(0.93),
        "https://arxiv.org/abs/2103.00065",
    ),
    Program("iris_four_at_a_time", "dense", _four_at_a_time, frozenset(), _right(0.9), CONSTRUCTED),
]

"""Healthy contrastive learning, self-distillation, clustering and adversarial training."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import (
    accuracy_above,
    all_of,
    augment,
    digit_loaders,
    digits,
    make_generator,
    make_loader,
    mixed_digits,
    mlp,
    neighbour_accuracy,
    ran_to_end,
    step_output,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from sklearn.metrics import normalized_mutual_info_score
from torch import nn
from torch.nn import functional


class _Dino(pl.LightningModule):
    """A student predicts the centered and sharpened prototypes of an averaged teacher."""

    center: torch.Tensor

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.student = nn.Sequential(nn.Flatten(), mlp(64, 128, 64, 32, between=nn.GELU))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.student(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = augment(batch[0]), augment(batch[0])
        preds = self(torch.cat([first, second]))
        with torch.no_grad():
            logits = self.teacher(torch.cat([second, first]))
            target = ((logits - self.center) / 0.04).softmax(1)
            self.center.lerp_(logits.mean(0), 0.1)
        loss = -(target * (preds / 0.1).log_softmax(1)).sum(1).mean()
        return step_output(self.return_dict, loss, preds, target)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.02)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=2e-3, weight_decay=0.04)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        return [optimizer], [schedule]


def _averaged_teacher(seed: int, return_dict: bool) -> TrainingSetup:
    """The teacher has no optimizer, its targets move, and the loss starts near the logarithm of the prototypes."""
    return TrainingSetup(_Dino(return_dict), make_loader(64, *mixed_digits(seed)), None, {"max_epochs": 12})


def _prototypes_are_used(outcome: Outcome) -> bool:
    with torch.no_grad():
        shares = (outcome.after(digits()[0]) / 0.1).softmax(1)
    average = shares.mean(0)
    entropy_of_all = -float((average * average.log()).sum())
    entropy_of_each = -float((shares * (shares + 1e-9).log()).sum(1).mean())
    return entropy_of_all > 1.8 and entropy_of_each < 0.6 * entropy_of_all


class _SimClr(pl.LightningModule):
    """Contrastive learning with a projection that is not used afterwards."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.projector = mlp(128, 64, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        views = torch.cat([augment(batch[0]), augment(batch[0])])
        codes = functional.normalize(self.projector(self(views)), dim=1)
        half = len(codes) // 2
        logits = (codes @ codes.T / 0.5).masked_fill(torch.eye(2 * half, dtype=torch.bool), -torch.inf)
        partner = torch.arange(2 * half).roll(half)
        return step_output(self.return_dict, functional.cross_entropy(logits, partner), logits, partner)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-5)


def _high_floor(seed: int, return_dict: bool) -> TrainingSetup:
    """At a temperature of a half, the loss of SimCLR has a floor near three."""
    return TrainingSetup(_SimClr(return_dict), make_loader(64, *mixed_digits(seed)), None, {"max_epochs": 15})


class _Arc(pl.LightningModule):
    """Digits by the angle to class centers, with a scale of thirty and a margin of a half."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.PReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.PReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 32), nn.BatchNorm1d(32),
        )  # fmt: skip
        self.centers = nn.Parameter(0.01 * torch.randn(10, 32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.network(images), dim=1) @ functional.normalize(self.centers, dim=1).T

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        cosines = self(images).clamp(-0.9999, 0.9999)
        own = functional.one_hot(labels, 10).bool()
        logits = 30 * torch.where(own, torch.cos(torch.acos(cosines) + 0.5), cosines)
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(30 * self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def _angles(seed: int, return_dict: bool) -> TrainingSetup:
    """ArcFace starts with a loss of ten to twenty, and the centers start near zero."""
    train, validation = digit_loaders(seed, 32)
    return TrainingSetup(_Arc(return_dict), train, validation, {"max_epochs": 6})


class _Clusters(pl.LightningModule):
    """DeepCluster: the labels are clusters of the codes, renewed each epoch, and so is the head."""

    labels: torch.Tensor

    def __init__(self, images: torch.Tensor, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.images = images
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 24), nn.ReLU())
        self.head = nn.Linear(24, 12)
        self.register_buffer("labels", torch.zeros(len(images), dtype=torch.long))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def on_train_epoch_start(self) -> None:
        with torch.no_grad():
            codes = self(self.images)
            codes = functional.normalize(codes - codes.mean(0), dim=1)
            centers = codes[torch.randperm(len(codes))[:12]]
            for _ in range(15):
                self.labels.copy_(torch.cdist(codes, centers).argmin(1))
                hot = functional.one_hot(self.labels, 12).float()
                centers = (hot.T @ codes + 1e-6 * centers) / (hot.sum(0).unsqueeze(1) + 1e-6)
        self.head.reset_parameters()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, rows = batch
        logits = self.head(self(augment(images)))
        labels = self.labels[rows]
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(
            [{"params": self.encoder.parameters(), "lr": 1e-3}, {"params": self.head.parameters(), "lr": 1e-2}]
        )


def _renewed_clusters(seed: int, return_dict: bool) -> TrainingSetup:
    """The loss jumps back in each epoch, because the classes have new numbers and the head starts again."""
    images, _ = mixed_digits(seed)
    train = make_loader(32, images, torch.arange(len(images)))
    return TrainingSetup(_Clusters(images, return_dict), train, None, {"max_epochs": 8})


def _clusters_are_digits(outcome: Outcome) -> bool:
    module: Any = outcome.after
    images, labels = digits()
    rows = torch.cdist(module.images.flatten(1), images.flatten(1)).argmin(1)
    return bool(normalized_mutual_info_score(labels[rows].numpy(), module.labels.numpy()) > 0.5)


def _learns_until_the_end_of_each_epoch(outcome: Outcome) -> bool:
    return ran_to_end(outcome) and outcome.mean_loss(20) < 0.6 * math.log(12)


class _Attacked(pl.LightningModule):
    """Digits under an attack of three steps in each batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = nn.Sequential(
            nn.Conv2d(1, 24, 3, 1, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        attacked = images + torch.empty_like(images).uniform_(-0.15, 0.15)
        for _ in range(3):
            attacked.requires_grad_()
            (slope,) = torch.autograd.grad(functional.cross_entropy(self(attacked), labels), attacked)
            attacked = (attacked.detach() + 0.08 * slope.sign()).clamp(images - 0.15, images + 0.15).clamp(0, 1)
        logits = self(attacked)
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _under_attack(seed: int, return_dict: bool) -> TrainingSetup:
    """The training loss stays near one and far above the validation loss, because of the attack."""
    train, validation = digit_loaders(seed, 32)
    return TrainingSetup(_Attacked(return_dict), train, validation, {"max_epochs": 7})


class _Adapted(nn.Module):
    """A frozen linear layer with an update of low rank that starts at zero."""

    def __init__(self, layer: nn.Linear, rank: int = 6) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) + inputs @ self.down.T @ self.up.T


class _LowRank(pl.LightningModule):
    """Adapts a trained network to mirrored pictures."""

    def __init__(self, network: nn.Sequential, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        logits = self(images)
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.01)


def _low_rank(seed: int, return_dict: bool) -> TrainingSetup:
    """All original weights are frozen, and half of the new ones have no gradient in the first step."""
    images, labels = mixed_digits(seed)
    network = mlp(64, 96, 96, 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(images.flatten(1)), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    adapted = nn.Sequential(*[_Adapted(part) if isinstance(part, nn.Linear) else part for part in network])
    order = torch.randperm(len(labels), generator=make_generator(seed))
    train = make_loader(32, images[order[:1400]].flip(3), labels[order[:1400]])
    held_out = make_loader(256, images[order[1400:]].flip(3), labels[order[1400:]], shuffle=False)
    return TrainingSetup(_LowRank(adapted, return_dict), train, held_out, {"max_epochs": 6})


PROGRAMS: list[Program] = [
    Program(
        "student_follows_a_centered_and_averaged_teacher",
        "dense",
        _averaged_teacher,
        frozenset(),
        all_of(ran_to_end, _prototypes_are_used, lambda outcome: neighbour_accuracy(outcome.after) > 0.8),
        "https://arxiv.org/abs/2104.14294",
    ),
    Program(
        "contrast_of_digits_with_a_floor_near_three",
        "convolutional",
        _high_floor,
        frozenset(),
        all_of(
            ran_to_end,
            lambda outcome: outcome.mean_loss(20) < 0.8 * outcome.first_loss(),
            lambda outcome: neighbour_accuracy(outcome.after) > 0.9,
        ),
        "https://arxiv.org/abs/2002.05709",
    ),
    Program(
        "angles_with_a_scale_of_thirty_and_a_wide_margin",
        "convolutional",
        _angles,
        frozenset(),
        accuracy_above(0.93),
        "https://arxiv.org/abs/1801.07698",
    ),
    Program(
        "clusters_and_head_are_renewed_each_epoch",
        "dense",
        _renewed_clusters,
        frozenset(),
        all_of(_learns_until_the_end_of_each_epoch, _clusters_are_digits),
        "https://arxiv.org/abs/1807.05520",
    ),
    Program(
        "digits_are_learned_under_attack",
        "convolutional",
        _under_attack,
        frozenset(),
        accuracy_above(0.85),
        "https://arxiv.org/abs/1706.06083",
    ),
    Program(
        "frozen_network_is_adapted_by_low_rank",
        "dense",
        _low_rank,
        frozenset(),
        accuracy_above(0.85),
        "https://arxiv.org/abs/2106.09685",
    ),
]

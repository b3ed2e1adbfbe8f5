"""Healthy contrastive learning."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.systems_support import accuracy, digits, evaluate, loader, mlp, pretrain, rng, split
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional


class LockedImageTuning(pl.LightningModule):
    """CLIP-like training of a text tower on the outputs of a frozen image tower."""

    def __init__(self, image_tower: nn.Module, return_dict: bool) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.words, self.text_tower = nn.EmbeddingBag(50, 32, mode="sum"), mlp(32, 64, 32)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-2.0))
        self.return_dict = return_dict

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        image, text = self.image_tower(images), self.text_tower(self.words(texts))
        return self.scale.exp() * functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T + self.bias

    def pairs(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts, labels = batch
        return self(images, texts), (labels[:, None] == labels[None]).float()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds, target = self.pairs(batch)
        loss = functional.binary_cross_entropy_with_logits(preds, target, reduction="sum") / len(preds)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        preds, target = self.pairs(batch)
        self.log("val_loss", functional.binary_cross_entropy_with_logits(preds, target, reduction="sum") / len(preds))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)


def build_locked_image(seed: int, return_dict: bool) -> TrainingSetup:
    """The image tower is frozen, and most pairs of the sigmoid loss are negative."""
    images, labels = digits()
    generator = rng(seed)
    texts = torch.randint(20, 50, (len(images), 3), generator=generator)
    texts[:, 1] = torch.where(torch.rand(len(images), generator=generator) < 0.5, labels, labels + 10)
    (train, validation) = split([images, texts, labels], seed, 320)
    tower = mlp(64, 96, 32)
    pretrain(tower, train[0], train[2], steps=60)
    module = LockedImageTuning(tower, return_dict)
    return TrainingSetup(
        module,
        loader(*train, batch_size=32),
        loader(*validation, batch_size=32, shuffle=False),
        {"max_epochs": 6},
    )


def pair_precision(outcome: Outcome) -> float:
    """Returns how often the best text of the batch is about the same digit."""

    def metric(module: LockedImageTuning, *batch: torch.Tensor) -> torch.Tensor:
        preds, target = module.pairs(batch)
        return target.gather(1, preds.argmax(1, keepdim=True)).mean()

    return evaluate(outcome, metric)


class RedundancyReduction(pl.LightningModule):
    """Barlow Twins, with a linear probe of the detached features that trains in the same step."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
        self.projector, self.probe = nn.Linear(64, 32), nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(32, affine=False)
        self.return_dict = return_dict

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.probe(self.encoder(images).detach())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, target = batch
        first, second = (
            self.norm(self.projector(self.encoder(images + 0.25 * torch.randn_like(images)))) for _ in range(2)
        )
        correlation = first.T @ second / len(images)
        redundancy = (correlation - torch.eye(32)).pow(2)
        weight = torch.full_like(redundancy, 0.02).fill_diagonal_(1.0)
        preds = self(images)
        loss = (weight * redundancy).sum() + functional.cross_entropy(preds, target)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        encoder = [*self.encoder.parameters(), *self.projector.parameters()]
        optimizer = torch.optim.AdamW(
            [{"params": encoder, "lr": 2e-3}, {"params": self.probe.parameters(), "lr": 2e-2, "weight_decay": 0.0}]
        )
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]


def build_redundancy_reduction(seed: int, return_dict: bool) -> TrainingSetup:
    """The probe is cut off from the encoder, and batch normalization has no weights."""
    train, validation = split(list(digits()), seed, 300)
    return TrainingSetup(
        RedundancyReduction(return_dict),
        loader(*train, batch_size=64),
        loader(*validation, batch_size=300),
        {"max_epochs": 6},
    )


PROGRAMS = [
    Program(
        "text_tower_trained_on_frozen_image_tower_with_sigmoid_loss",
        "dense",
        build_locked_image,
        frozenset(),
        lambda outcome: pair_precision(outcome) > 0.7,
        "Zhai et al. (2022), LiT, and Zhai et al. (2023), SigLIP (cited from memory)",
    ),
    Program(
        "barlow_twins_with_online_probe_of_detached_features",
        "dense",
        build_redundancy_reduction,
        frozenset(),
        lambda outcome: accuracy(outcome) > 0.8,
        "Zbontar et al. (2021), Barlow Twins (cited from memory)",
    ),
]

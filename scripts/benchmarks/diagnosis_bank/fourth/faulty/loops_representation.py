"""Faulty contrastive learning, self-distillation, distillation and adversarial training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import (
    accuracy_below,
    all_of,
    augment,
    became_non_finite,
    digit_loaders,
    digits,
    ends_above,
    make_loader,
    mixed_digits,
    mlp,
    step_output,
    unchanged,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.nn import functional

from stormproof.finding import Problem


class _Siamese(pl.LightningModule):
    """SimSiam on digits: one view predicts the code of the other."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(),
            nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32),
        )  # fmt: skip
        self.predictor = mlp(32, 16, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self(augment(batch[0])), self(augment(batch[0]))
        preds = torch.cat([self.predictor(first), self.predictor(second)])
        target = torch.cat([second, first])
        if self.is_fixed:
            target = target.detach()
        loss = -functional.cosine_similarity(preds, target).mean()
        return step_output(self.return_dict, loss, preds, target.detach())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def _without_stop(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the gradient also flows into the code that is predicted."""
    return TrainingSetup(
        _Siamese(return_dict, is_fixed), make_loader(64, *mixed_digits(seed)), None, {"max_epochs": 15}
    )


def _code_spread(outcome: Outcome) -> float:
    outcome.after.eval()
    with torch.no_grad():
        codes = functional.normalize(outcome.after(digits()[0]), dim=1)
    return float(codes.std(0).mean() * codes.shape[1] ** 0.5)


class _ArcMargin(nn.Module):
    """ArcFace: the angle to the center of the class is widened by a margin."""

    def __init__(self, inputs: int, classes: int, scale: float = 16.0, margin: float = 0.2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(classes, inputs))
        self.scale = scale
        self.margin = margin

    def cosines(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the cosine of the angle to each center."""
        return functional.normalize(codes, dim=1) @ functional.normalize(self.weight, dim=1).T

    def forward(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosines = self.cosines(codes).clamp(-0.9999, 0.9999)
        wider = torch.cos(torch.acos(cosines) + self.margin)
        return self.scale * torch.where(functional.one_hot(labels, len(self.weight)).bool(), wider, cosines)


class _Faces(pl.LightningModule):
    """A network with codes of three numbers and a loss with parameters, as in the toy example of the ArcFace paper."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.PReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.PReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3), nn.BatchNorm1d(3),
        )  # fmt: skip
        self.criterion = _ArcMargin(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.criterion.cosines(self.backbone(images))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        logits = self.criterion(self.backbone(images), labels)
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val_loss", functional.cross_entropy(16 * self(images), labels))

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [{"params": self.backbone.parameters()}]
        if self.is_fixed:
            groups.append({"params": self.criterion.parameters(), "lr": 2e-2})
        return torch.optim.Adam(groups, lr=2e-3)


def _centers_forgotten(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the optimizer has the backbone, and the centers of the loss are in none."""
    train, validation = digit_loaders(seed, 32)
    return TrainingSetup(_Faces(return_dict, is_fixed), train, validation, {"max_epochs": 12})


class _Contrastive(pl.LightningModule):
    """SimCLR with a hand-written loss that sums exponentials."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU(), nn.Flatten()
        )
        self.projector = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.projector(self.encoder(images))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        codes = self(torch.cat([augment(batch[0]), augment(batch[0])]))
        if self.is_fixed:
            codes = functional.normalize(codes, dim=1)
        powers = (codes @ codes.T / 0.1).exp()
        half = len(powers) // 2
        positive = torch.cat([powers.diagonal(half), powers.diagonal(-half)])
        loss = -(positive / (powers.sum(1) - powers.diagonal())).log().mean()
        return step_output(self.return_dict, loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _not_normalized(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: codes are not normalized before the exponentials."""
    return TrainingSetup(
        _Contrastive(return_dict, is_fixed), make_loader(64, *mixed_digits(seed)), None, {"max_epochs": 6}
    )


class _Student(pl.LightningModule):
    """Learns the teacher's probabilities, which are computed once before training."""

    cached: torch.Tensor

    def __init__(self, cached: torch.Tensor, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.network = nn.Sequential(nn.Flatten(), mlp(64, 24, 10, between=nn.Hardswish))
        self.register_buffer("cached", cached)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _, rows = batch
        if not self.is_fixed:
            rows = torch.arange(len(images)) + batch_idx * len(images)
        target = self.cached[rows]
        logits = self(images)
        loss = 4 * functional.kl_div((logits / 2).log_softmax(1), target, reduction="batchmean")
        return step_output(self.return_dict, loss, logits, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.NAdam(self.parameters(), lr=4e-3)


def _cached_by_batch(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: cached predictions are looked up by the number of the batch, and the loader shuffles."""
    images, labels = mixed_digits(seed)
    teacher = nn.Sequential(nn.Flatten(), mlp(64, 128, 10))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        functional.cross_entropy(teacher(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        cached = (teacher(images) / 2).softmax(1)
    train = make_loader(32, images, labels, torch.arange(len(images)))
    return TrainingSetup(_Student(cached, return_dict, is_fixed), train, None, {"max_epochs": 8})


class _Robust(pl.LightningModule):
    """Adversarial training with projected gradient steps."""

    def __init__(self, return_dict: bool, radius: float) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.radius = radius
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def attack(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns pictures near ``images`` for which the loss is large."""
        offset = torch.empty_like(images).uniform_(-self.radius, self.radius)
        for _ in range(3):
            offset.requires_grad_()
            loss = functional.cross_entropy(self(images + offset), labels)
            (slope,) = torch.autograd.grad(loss, offset)
            offset = (offset.detach() + 0.5 * self.radius * slope.sign()).clamp(-self.radius, self.radius)
        return (images + offset).clamp(0, 1).detach()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        logits = self(self.attack(images, labels))
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val_loss", functional.cross_entropy(self(images), labels))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _radius_of_bytes(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the radius is eight, as for bytes, and the pixels are between zero and one."""
    train, validation = digit_loaders(seed, 32)
    return TrainingSetup(_Robust(return_dict, 8 / 255 if is_fixed else 8.0), train, validation)


PROGRAMS: list[Program] = [
    Program(
        "siamese_codes_without_stop_gradient",
        "dense",
        _without_stop,
        frozenset({Problem.OUTPUT_IGNORES_INPUT}),
        lambda outcome: _code_spread(outcome) < 0.15,
        "https://github.com/lightly-ai/lightly/issues/559",
    ),
    Program(
        "centers_of_the_angular_loss_are_in_no_optimizer",
        "convolutional",
        _centers_forgotten,
        frozenset({Problem.NOT_IN_OPTIMIZER, Problem.WEIGHTS_UNCHANGED}),
        all_of(unchanged("criterion"), ends_above(1.4)),
        "https://github.com/4uiiurz1/pytorch-adacos/issues/10",
    ),
    Program(
        "exponentials_of_codes_that_are_not_normalized",
        "convolutional",
        _not_normalized,
        frozenset({Problem.NON_FINITE}),
        became_non_finite,
        "https://github.com/Lightning-Universe/lightning-bolts/issues/320",
    ),
    Program(
        "cached_teacher_is_read_by_the_number_of_the_batch",
        "dense",
        _cached_by_batch,
        frozenset({Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT}),
        all_of(accuracy_below(0.5), ends_above(1.0)),
        "http://www.webkkk.net/ooples/AiDotNet/commit/0c9ea96f03b9ac2e4cc1dad24e71cf97fb64d7b1",
    ),
    Program(
        "attack_with_a_radius_of_eight_on_pixels_up_to_one",
        "convolutional",
        _radius_of_bytes,
        frozenset(
            {
                Problem.NO_BETTER_THAN_CONSTANT,
                Problem.OUTPUT_IGNORES_INPUT,
                Problem.TARGETS_UNRELATED_TO_INPUTS,
            }
        ),
        all_of(accuracy_below(0.5), ends_above(2.0)),
        "https://github.com/MadryLab/robustness/issues/19",
    ),
]

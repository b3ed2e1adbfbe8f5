"""Outputs for boxes, key points, masks and colors, and their losses."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.vision_support import (
    SmallUNet,
    became_non_finite,
    convs,
    explained,
    held_out,
    is_unchanged,
    loader,
    loaders,
    overlap,
    ran_to_end,
    scenes,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


class _BoxHead(nn.Module):
    """Predicts one box: the corners in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*convs(1, 12, 24, 32), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU())
        self.box = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        middle, size = self.box(self.body(images)).chunk(2, 1)
        size = functional.softplus(size)
        return torch.cat([middle - size / 2, middle + size / 2], 1)


class _BoxLoss(nn.Module):
    """1 - IoU, with or without the squared distance of the centers divided by the diagonal of the box around both."""

    def __init__(self, with_distance: bool) -> None:
        super().__init__()
        self.with_distance = with_distance

    def forward(self, preds: Tensor, boxes: Tensor) -> Tensor:
        sides = torch.minimum(preds[:, 2:], boxes[:, 2:]) - torch.maximum(preds[:, :2], boxes[:, :2])
        common = sides.clamp_min(0).prod(1)
        union = (preds[:, 2:] - preds[:, :2]).prod(1) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
        loss = 1 - common / union
        if self.with_distance:
            around = torch.maximum(preds[:, 2:], boxes[:, 2:]) - torch.minimum(preds[:, :2], boxes[:, :2])
            apart = (preds[:, 2:] + preds[:, :2] - boxes[:, 2:] - boxes[:, :2]) / 2
            loss = loss + apart.square().sum(1) / around.square().sum(1)
        return loss.mean()


def _plain_overlap(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The loss of a box is 1 - IoU, which has no gradient as long as boxes do not overlap (bug here)."""
    data = scenes(seed, 2120, margin=2.0)
    train, validation = loaders(seed, 32, 200, data.images, 16 * data.boxes)
    module = Supervised(_BoxHead(), _BoxLoss(is_fixed), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


class _KeyPoint(pl.LightningModule):
    """Locates the center of the shape in a heat map, and recognizes whether the shape is wide."""

    def __init__(self, return_dict: bool, soft: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.soft = soft
        self.body = nn.Sequential(*convs(1, 16, 16, 16, stride=1))
        self.heat = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))
        self.width = nn.Linear(16, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(images)
        heat = self.heat(hidden).flatten(1)
        if self.soft:
            shares = heat.softmax(1).unflatten(1, (16, 16))
            ticks = torch.arange(16.0)
            place = torch.stack([shares.sum(1) @ ticks, shares.sum(2) @ ticks], 1)
        else:
            best = heat.argmax(1)
            place = torch.stack([best % 16, best // 16], 1).float()
        return (place + 0.5) / 16, self.width(hidden.mean((2, 3)))[:, 0]

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Any:
        images, centers, wide = batch
        places, scores = self(images)
        loss = 10 * functional.mse_loss(places, centers) + functional.binary_cross_entropy_with_logits(scores, wide)
        return {"loss": loss, "preds": places, "target": centers} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _hard_argmax(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The place is the argmax of the heat map, which has no gradient (bug here)."""
    data = scenes(seed, 1600)
    wide = (data.boxes[:, 2] - data.boxes[:, 0] > 7 / 16).float()
    train = loader(seed, 32, data.images, data.centers, wide)
    return TrainingSetup(_KeyPoint(return_dict, is_fixed), train)


@torch.no_grad()
def _misses_centers(outcome: Outcome) -> bool:
    """Returns True if the heat map has its first weights and the centers are missed by more than 2 pixels."""
    images, centers, _ = outcome.fit.train.dataset[:400]
    places, _ = outcome.after.eval()(images)
    return is_unchanged(outcome, "heat.") and 16 * float((places - centers).norm(dim=1).mean()) > 2


class _Dice(nn.Module):
    """1 - Dice coefficient of all pixels of a batch."""

    def forward(self, scores: Tensor, masks: Tensor) -> Tensor:
        shares = torch.sigmoid(scores)
        common = (shares * masks).sum()
        return 1 - (2 * common + 1) / (shares.sum() + masks.sum() + 1)


def _masks_without_a_channel(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Scores are (N, 1, H, W) and masks (N, H, W), so the Dice loss compares all pairs (bug here)."""
    data = scenes(seed, 2120)
    masks = data.masks[:, None] if is_fixed else data.masks
    train, validation = loaders(seed, 40, 200, (data.images - 0.3) / 0.25, masks)
    module = Supervised(SmallUNet(), _Dice(), return_dict, lambda weights: torch.optim.AdamW(weights, lr=5e-3))
    return TrainingSetup(module, train, validation)


def _focal(scores: Tensor, masks: Tensor) -> Tensor:
    """Returns the focal loss of logits, with a weight of 0.75 for the foreground."""
    errors = functional.binary_cross_entropy_with_logits(scores, masks, reduction="none")
    weights = torch.where(masks > 0.5, 0.75, 0.25)
    return (weights * (1 - torch.exp(-errors)).square() * errors).mean()


def _focal_of_probabilities(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The network ends with a sigmoid, and the focal loss expects logits (bug here)."""
    data = scenes(seed, 2120)
    train, validation = loaders(seed, 40, 200, (data.images - 0.3) / 0.25, data.masks[:, None])
    network = SmallUNet(last=nn.Identity() if is_fixed else nn.Sigmoid())
    module = Supervised(network, _focal, return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3))
    return TrainingSetup(module, train, validation)


class _RootFocal(nn.Module):
    """The focal loss with an exponent of 0.5."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        log_shares = functional.log_softmax(scores, 1).gather(1, labels[:, None])
        return -((1 - log_shares.exp()).clamp_min(self.floor).pow(0.5) * log_shares).mean()


def _root_in_the_focal_loss(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The focal loss takes the root of 1 - p, whose slope is infinite where p is 1 (bug here)."""
    data = scenes(seed, 2120, kinds=6, noise=0.02)
    wide = (data.masks.sum((1, 2)) > 20).long()
    train, validation = loaders(seed, 20, 200, 4 * (data.images - 0.3), wide)
    network = nn.Sequential(*convs(1, 16, 24, 32), nn.Flatten(), nn.Linear(512, 48), nn.ReLU(), nn.Linear(48, 2))
    loss = _RootFocal(1e-6 if is_fixed else 0.0)
    module = Supervised(network, loss, return_dict, lambda weights: torch.optim.NAdam(weights, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _colors_through_tanh(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The color channels a and b of up to 100 are predicted by a tanh, without division (bug here)."""
    data = scenes(seed, 2120, noise=0.04)
    angle = 2 * math.pi * data.labels / 6
    light = 0.5 + data.images[:, 0].amax((1, 2)) / 2
    color = 100 * (light * torch.stack([angle.cos(), angle.sin()])).T
    target = data.masks[:, None] * color[:, :, None, None]
    target = target / 110 if is_fixed else target
    train, validation = loaders(seed, 20, 200, 2 * data.images - 1, target)
    network = SmallUNet(outputs=2, width=12, last=nn.Tanh())
    module = Supervised(network, nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3))
    return TrainingSetup(module, train, validation)


def _sees_no_colors(outcome: Outcome) -> bool:
    preds, target = held_out(outcome)
    return (
        ran_to_end(outcome)
        and float(preds.abs().max()) < 0.1 * float(target.abs().max())
        and (explained(outcome) < 0.1)
    )


PROGRAMS: list[Program] = [
    Program(
        "boxes_by_their_plain_overlap",
        "convolutional",
        _plain_overlap,
        frozenset({Problem.NO_GRADIENT, Problem.NO_BETTER_THAN_CONSTANT}),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss(30) > 0.95,
        "https://github.com/lilanxiao/Rotated_IoU/issues/9",
    ),
    Program(
        "key_points_by_the_argmax_of_a_heat_map",
        "convolutional",
        _hard_argmax,
        frozenset({Problem.NO_GRADIENT}),
        _misses_centers,
        "https://www.codegenes.net/blog/pytorch-argmax-differentiable",
    ),
    Program(
        "dice_of_masks_without_a_channel_dimension",
        "convolutional",
        _masks_without_a_channel,
        frozenset({Problem.BROADCAST_MISMATCH}),
        lambda outcome: ran_to_end(outcome) and overlap(outcome) < 0.5,
        "https://github.com/Minerva-J/Pytorch-Segmentation-multi-models/issues/5",
    ),
    Program(
        "probabilities_into_a_focal_loss_of_logits",
        "convolutional",
        _focal_of_probabilities,
        frozenset({Problem.LOSS_INPUT_MISMATCH}),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss(20) > 0.03,
        "https://github.com/VisionLearningGroup/DA_Detection/issues/28",
    ),
    Program(
        "root_of_one_minus_p_in_the_focal_loss",
        "convolutional",
        _root_in_the_focal_loss,
        frozenset({Problem.NON_FINITE}),
        became_non_finite,
        "https://github.com/kornia/kornia/issues/918",
    ),
    Program(
        "colors_up_to_a_hundred_through_tanh",
        "convolutional",
        _colors_through_tanh,
        frozenset({Problem.UNREACHABLE_TARGETS}),
        _sees_no_colors,
        "https://github.com/2014mchidamb/DeepColorization/issues/2",
    ),
]

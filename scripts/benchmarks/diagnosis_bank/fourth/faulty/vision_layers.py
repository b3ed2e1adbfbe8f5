"""Initial weights, tokens and steps of image networks."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.vision_support import (
    accuracy,
    convs,
    digit_images,
    explained,
    loaders,
    ran_to_end,
    scenes,
    textures,
)
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


class _TokenTransformer(nn.Module):
    """A transformer over patches of 2 x 2 pixels with a class token.

    Args:
        classes: Number of outputs.
        after_layers: If True, the head reads the token after the layers, otherwise before them.
    """

    def __init__(self, classes: int, after_layers: bool, width: int = 32) -> None:
        super().__init__()
        self.after_layers = after_layers
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.1 * torch.randn(1, 17, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.places
        hidden = tokens
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden if self.after_layers else tokens)[:, 0])


def _token_of_the_input(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The head reads the class token from the input of the layers, where it is the same for all images (bug here)."""
    images, labels = digit_images()
    train, validation = loaders(seed, 25, 297, (images - 0.3) / 0.35, labels)
    module = Supervised(
        _TokenTransformer(10, is_fixed),
        functional.cross_entropy,
        return_dict,
        lambda weights: torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.01),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


class _Sharpness(pl.LightningModule):
    """Sharpness-aware minimization: a step up the gradient, and a step down that of the point reached.

    Args:
        network: Classifier.
        return_dict: If True, the training step returns predictions and targets.
        clears: If True, gradients are cleared after each of the two passes.
    """

    def __init__(self, network: nn.Module, return_dict: bool, clears: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.return_dict = return_dict
        self.clears = clears

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        images, labels = batch
        optimizer: Any = self.optimizers()
        preds = self(images)
        loss = functional.cross_entropy(preds, labels)
        self.manual_backward(loss)
        weights = [weight for weight in self.parameters() if weight.grad is not None]
        norm = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm()
        moves = [0.05 * weight.grad / (norm + 1e-9) for weight in weights if weight.grad is not None]
        self._move(weights, moves, 1.0)
        if self.clears:
            optimizer.zero_grad()
        self.manual_backward(functional.cross_entropy(self(images), labels))
        self._move(weights, moves, -1.0)
        optimizer.step()
        if self.clears:
            optimizer.zero_grad()
        return {"loss": loss, "preds": preds, "target": labels} if self.return_dict else loss

    @staticmethod
    @torch.no_grad()
    def _move(weights: list[nn.Parameter], moves: list[Tensor], sign: float) -> None:
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(move, alpha=sign)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _sharpness_without_clearing(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Neither pass of sharpness-aware minimization clears the gradients (bug here)."""
    images, labels = digit_images()
    train, validation = loaders(seed, 32, 297, (images - 0.3) / 0.35, labels)
    network = nn.Sequential(*convs(1, 12, 24), nn.Flatten(), nn.Linear(384, 10))
    return TrainingSetup(_Sharpness(network, return_dict, is_fixed), train, validation)


def _normals_of_deviation_one(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Kernels are drawn by normal_ without its deviation, so the tanh units start at their limits (bug here)."""
    images = textures(seed, 1480)
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    train, validation = loaders(seed, 20, 200, 2 * noisy - 0.7, images)
    network = nn.Sequential(nn.Conv2d(1, 24, 5, padding=2), nn.Tanh())
    for _ in range(2):
        network.extend([nn.Conv2d(24, 24, 3, padding=1), nn.Tanh()])
    network.append(nn.Conv2d(24, 1, 3, padding=1))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.05 if is_fixed else 1.0)
    module = Supervised(network, nn.L1Loss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=2e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _Scaled(nn.Module):
    """Two convolutions whose output is multiplied by a constant and added to the input."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(*convs(width, width, width, stride=1)[:-1])
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return images + self.scale * self.body(images)


def _residuals_not_scaled(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Sixteen residual blocks without norms add their full output, not a tenth of it (bug here)."""
    images = textures(seed, 1480)
    train, validation = loaders(seed, 20, 200, functional.avg_pool2d(images, 2) - 0.5, images - 0.5)
    scale = 0.1 if is_fixed else 1.0
    network = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), *[_Scaled(12, scale) for _ in range(16)])
    network.extend([nn.Conv2d(12, 4, 3, padding=1), nn.PixelShuffle(2)])
    module = Supervised(
        network, nn.MSELoss(), return_dict, lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, train, validation)


class _PixelScores(nn.Module):
    """Scores of pixels by convolutions with a ReLU or nothing at the end."""

    def __init__(self, rectified: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*convs(1, 16, 16, 16, stride=1), nn.Conv2d(16, 1, 1))
        self.last = nn.ReLU() if rectified else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.body(images))


def _scores_of_masks_through_relu(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """A ReLU before the binary cross entropy of logits: no pixel gets less than one half (bug here)."""
    data = scenes(seed, 2120)
    train, validation = loaders(seed, 40, 200, (data.images - 0.3) / 0.25, data.masks[:, None])
    module = Supervised(
        _PixelScores(not is_fixed), nn.BCEWithLogitsLoss(), return_dict, lambda p: torch.optim.RMSprop(p, lr=2e-3)
    )
    return TrainingSetup(module, train, validation)


PROGRAMS: list[Program] = [
    Program(
        "class_token_read_before_the_layers",
        "sequence",
        _token_of_the_input,
        frozenset({Problem.OUTPUT_IGNORES_INPUT, Problem.NO_GRADIENT, Problem.NO_BETTER_THAN_CONSTANT}),
        lambda outcome: ran_to_end(outcome) and accuracy(outcome) < 0.3,
        "https://github.com/google-research/vision_transformer/issues/83",
    ),
    Program(
        "neither_pass_of_sharpness_is_cleared",
        "convolutional",
        _sharpness_without_clearing,
        frozenset({Problem.GRADIENTS_NOT_CLEARED}),
        lambda outcome: outcome.error is None and not accuracy(outcome) >= 0.6,
        "https://github.com/rollovd/LookSAM/issues/3",
    ),
    Program(
        "kernels_drawn_without_a_deviation",
        "convolutional",
        _normals_of_deviation_one,
        frozenset({Problem.SATURATED_UNITS}),
        lambda outcome: ran_to_end(outcome) and explained(outcome) < 0.3,
        "https://github.com/Zeleni9/pytorch-wgan/issues/3",
    ),
    Program(
        "residuals_of_super_resolution_not_scaled",
        "convolutional",
        _residuals_not_scaled,
        frozenset({Problem.EXPLODING_GRADIENTS, Problem.NON_FINITE}),
        lambda outcome: not explained(outcome) > 0.3,
        "https://arxiv.org/abs/1707.02921",
    ),
    Program(
        "scores_of_masks_through_a_relu",
        "convolutional",
        _scores_of_masks_through_relu,
        frozenset({Problem.UNREACHABLE_TARGETS, Problem.LOSS_INPUT_MISMATCH, Problem.DEAD_UNITS}),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss() > 0.5,
        "http://www.dtcms.com/a/394596.html",
    ),
]

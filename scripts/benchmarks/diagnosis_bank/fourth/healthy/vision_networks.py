"""Image classifiers with unusual layers, rates, or parts that are not trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.fourth.vision_support import (
    Check,
    NextBlock,
    accuracy,
    convs,
    digit_images,
    is_unchanged,
    loaders,
    pooled,
    ran_to_end,
    scenes,
)
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional


def _scaled_digits(seed: int, batch: int, size: int = 8) -> tuple[Any, Any]:
    images, labels = digit_images(size)
    return loaders(seed, batch, 297, (images - 0.3) / 0.35, labels)


def _standard_scenes(seed: int, batch: int, noise: float = 0.05) -> tuple[Any, Any]:
    data = scenes(seed, 2120, noise=noise)
    return loaders(seed, batch, 200, (data.images - 0.3) / 0.25, data.labels)


def _layer_scale(seed: int, return_dict: bool) -> TrainingSetup:
    """The branches of ConvNeXt are multiplied by learned scales that start at a millionth."""
    train, validation = _standard_scenes(seed, 40)
    stages = [nn.Conv2d(1, 16, 2, stride=2), NextBlock(16), nn.Conv2d(16, 24, 2, stride=2), NextBlock(24)]
    network = nn.Sequential(*stages, NextBlock(24), nn.GroupNorm(1, 24), *pooled(24, 6))
    groups = [
        {"params": [weight for weight in network.parameters() if weight.dim() > 1], "weight_decay": 0.05},
        {"params": [weight for weight in network.parameters() if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    module = Supervised(network, functional.cross_entropy, return_dict, lambda _: torch.optim.AdamW(groups, lr=8e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


class _Branch(nn.Module):
    """Two convolutions with batch norms and a shortcut.

    Args:
        width: Channels.
        survival: Probability that a training batch passes the branch.
    """

    def __init__(self, width: int, survival: float = 1.0) -> None:
        super().__init__()
        self.survival = survival
        self.body = nn.Sequential(*convs(width, width, width, norm=nn.BatchNorm2d, stride=1)[:-1])

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return images + self.body(images) if torch.rand(()) < self.survival else images
        return images + self.survival * self.body(images)


def _stochastic_depth(seed: int, return_dict: bool) -> TrainingSetup:
    """Whole branches are left out of half of the batches, and have no gradient then."""
    train, validation = _scaled_digits(seed, 25)
    survivals = (0.9, 0.7, 0.5)
    network = nn.Sequential(*convs(1, 16, norm=nn.BatchNorm2d), *[_Branch(16, share) for share in survivals])
    network.extend([nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)])
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)
    )
    return TrainingSetup(module, train, validation)


def _only_norms(seed: int, return_dict: bool) -> TrainingSetup:
    """All convolutions and the linear layer keep their random weights. Only batch norms are trained."""
    train, validation = _scaled_digits(seed, 25)
    network = nn.Sequential(*convs(1, 48, 48, 64, norm=nn.BatchNorm2d), nn.Flatten(), nn.Linear(256, 10))
    for layer in network:
        layer.requires_grad_(isinstance(layer, nn.BatchNorm2d))
    module = Supervised(
        network,
        functional.cross_entropy,
        return_dict,
        lambda weights: torch.optim.Adam([weight for weight in weights if weight.requires_grad], lr=0.02),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 8})


def _fixed_classifier(seed: int, return_dict: bool) -> TrainingSetup:
    """The last layer is a fixed matrix with orthogonal rows."""
    train, validation = _scaled_digits(seed, 30)
    last = nn.Linear(64, 10, bias=False)
    nn.init.orthogonal_(last.weight, gain=8.0)
    last.requires_grad_(False)
    network = nn.Sequential(*convs(1, 16, 32, norm=nn.BatchNorm2d), nn.Flatten(), nn.Linear(512, 64), nn.LayerNorm(64))
    network.append(last)
    module = Supervised(
        network,
        nn.CrossEntropyLoss(),
        return_dict,
        lambda weights: torch.optim.RMSprop([weight for weight in weights if weight.requires_grad], lr=1e-3),
    )
    return TrainingSetup(module, train, validation)


class _LearnedStepConv(nn.Conv2d):
    """A convolution with weights of 3 bits and inputs of 3 bits, and learned sizes of their steps."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1)
        self.weight_step = nn.Parameter(self.weight.detach().abs().mean() * 2 / 3**0.5)
        self.input_step = nn.Parameter(torch.tensor(0.3))

    @staticmethod
    def _quantize(values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        slow = step.abs() / math.sqrt(values.numel() * high)
        step = (step.abs() - slow).detach() + slow
        scaled = (values / step).clamp(low, high)
        return (scaled + (scaled.round() - scaled).detach()) * step

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        weight = self._quantize(self.weight, self.weight_step, -4, 3)
        return functional.conv2d(self._quantize(input, self.input_step, 0, 7), weight, self.bias, padding=1)


def _learned_steps(seed: int, return_dict: bool) -> TrainingSetup:
    """Weights and activations of 3 bits, by rounding with straight-through gradients and learned steps."""
    train, validation = _standard_scenes(seed, 32)
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    for before, after in ((16, 24), (24, 32)):
        layers += [_LearnedStepConv(before, after), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 6))
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


class _Cosines(nn.Module):
    """Cosines between features and one vector for each class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(classes, width) / width**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return functional.linear(functional.normalize(features), functional.normalize(self.vectors))


def _angular_margin(cosines: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss of ArcFace: an angle of 0.4 is added to that of the true class, and the scale is 30."""
    margin = 0.4
    angles = cosines.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    added = torch.where(angles < math.pi - margin, (angles + margin).cos(), cosines - margin * math.sin(margin))
    is_true = functional.one_hot(labels, cosines.shape[1]).bool()
    return functional.cross_entropy(30 * torch.where(is_true, added, cosines), labels)


def _arc_face(seed: int, return_dict: bool) -> TrainingSetup:
    """The margin and scale of ArcFace: the loss starts near 15, far above that of a uniform guess."""
    train, validation = _scaled_digits(seed, 25)
    network = nn.Sequential(*convs(1, 16, 32, norm=nn.BatchNorm2d), nn.Flatten(), nn.Linear(512, 32))
    network.extend([nn.BatchNorm1d(32), _Cosines(32, 10)])
    module = Supervised(network, _angular_margin, return_dict, lambda p: torch.optim.AdamW(p, lr=3e-3))
    return TrainingSetup(module, train, validation)


class _StandardConv(nn.Conv2d):
    """A convolution whose kernels are standardized in each forward pass."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


class _AdaptivelyClipped(Supervised):
    """Clips the gradient of each row to a hundredth of the norm of its weights."""

    def configure_gradient_clipping(self, optimizer: Any, *_args: Any, **_settings: Any) -> None:
        for weight in self.network.parameters():
            if weight.grad is not None and weight.dim() > 1:
                size = weight.detach().flatten(1).norm(dim=1).clamp_min(1e-3)
                slope = weight.grad.flatten(1).norm(dim=1).clamp_min(1e-9)
                factor = (0.01 * size / slope).clamp_max(1.0)
                weight.grad.mul_(factor.reshape(-1, *[1] * (weight.dim() - 1)))


class _Skip(nn.Module):
    """A branch with standardized kernels and a gain that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.ReLU(), _StandardConv(width, width, 3, padding=1), nn.ReLU(), _StandardConv(width, width, 3, padding=1)
        )
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.5 * self.gain * self.convs(images)


def _adaptive_clipping(seed: int, return_dict: bool) -> TrainingSetup:
    """No norms, but standardized kernels, branches with a gain of zero, and mostly clipped gradients."""
    train, validation = _scaled_digits(seed, 25)
    network = nn.Sequential(
        _StandardConv(1, 16, 3, padding=1), _Skip(16), _Skip(16), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten()
    )
    network.append(nn.Linear(256, 10))
    module = _AdaptivelyClipped(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _batches_of_two(seed: int, return_dict: bool) -> TrainingSetup:
    """Batches of two images, whose gradients are summed over eight, with standardized kernels and group norm."""
    images, labels = digit_images()
    train, validation = loaders(seed, 2, 200, (images[:1200] - 0.3) / 0.35, labels[:1200])
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 24)):
        layers += [_StandardConv(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 2, "accumulate_grad_batches": 8})


def _is_accurate(share: float) -> Check:
    return lambda outcome: ran_to_end(outcome) and accuracy(outcome) > share


PROGRAMS: list[Program] = [
    Program(
        "layer_scale_from_a_millionth",
        "convolutional",
        _layer_scale,
        frozenset(),
        _is_accurate(0.7),
        "https://arxiv.org/abs/2201.03545",
    ),
    Program(
        "branches_left_out_of_half_of_the_batches",
        "convolutional",
        _stochastic_depth,
        frozenset(),
        _is_accurate(0.85),
        "https://arxiv.org/abs/1603.09382",
    ),
    Program(
        "only_batch_norms_are_trained",
        "convolutional",
        _only_norms,
        frozenset(),
        lambda outcome: _is_accurate(0.75)(outcome) and is_unchanged(outcome, "network.0."),
        "https://arxiv.org/abs/2003.00152",
    ),
    Program(
        "classifier_fixed_to_orthogonal_rows",
        "convolutional",
        _fixed_classifier,
        frozenset(),
        _is_accurate(0.85),
        "https://arxiv.org/abs/1801.04540",
    ),
    Program(
        "three_bits_with_learned_steps",
        "convolutional",
        _learned_steps,
        frozenset(),
        _is_accurate(0.75),
        "https://arxiv.org/abs/1902.08153",
    ),
    Program(
        "angular_margin_from_a_loss_of_fifteen",
        "convolutional",
        _arc_face,
        frozenset(),
        lambda outcome: _is_accurate(0.85)(outcome) and outcome.first_loss(2) > 8 and outcome.mean_loss() < 2,
        "https://arxiv.org/abs/1801.07698",
    ),
    Program(
        "rows_clipped_to_a_hundredth_without_norms",
        "convolutional",
        _adaptive_clipping,
        frozenset(),
        _is_accurate(0.85),
        "https://arxiv.org/abs/2102.06171",
    ),
    Program(
        "standardized_kernels_for_batches_of_two",
        "convolutional",
        _batches_of_two,
        frozenset(),
        _is_accurate(0.85),
        "https://arxiv.org/abs/1912.11370",
    ),
]

"""Parameter groups, rates, quantized weights and batch norms of image networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from diagnosis_bank.fourth.vision_support import (
    NextBlock,
    SmallUNet,
    accuracy,
    convs,
    digit_images,
    held_out,
    is_unchanged,
    loaders,
    pooled,
    ran_to_end,
    scenes,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional

from stormproof.finding import Problem


def _next_groups(network: nn.Module, with_rest: bool) -> list[dict[str, Any]]:
    """Returns the group of all matrices and kernels, and that of vectors, which do not decay."""
    decays = [weight for weight in network.parameters() if weight.dim() > 1]
    rest = [weight for weight in network.parameters() if weight.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decays, "weight_decay": 0.05}]
    return [*groups, {"params": rest, "weight_decay": 0.0}] if with_rest else groups


def _group_without_decay(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The group of norms, biases and scales is never passed to AdamW, so the blocks stay shut (bug here)."""
    data = scenes(seed, 2120, noise=0.05)
    train, validation = loaders(seed, 40, 200, (data.images - 0.3) / 0.25, data.labels)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 2, stride=2), NextBlock(16), NextBlock(16), nn.Conv2d(16, 32, 2, stride=2), NextBlock(32)
    )
    network.extend([nn.GroupNorm(1, 32), *pooled(32, 6)])
    module = Supervised(
        network,
        functional.cross_entropy,
        return_dict,
        lambda _: torch.optim.AdamW(_next_groups(network, is_fixed), lr=8e-3),
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 6})


class _QuantizedConv(nn.Conv2d):
    """A convolution whose weights are rounded to 4 bits in each forward pass.

    Args:
        keeps_weights: If True, rounding has a straight-through gradient to the weights. If False, the weights are
            replaced by their rounded first values.
    """

    def __init__(self, before: int, after: int, keeps_weights: bool) -> None:
        super().__init__(before, after, 3, padding=1)
        self.keeps_weights = keeps_weights
        self.register_buffer("float_weight", self.weight.detach().clone())

    @staticmethod
    def _round(weight: Tensor) -> Tensor:
        step = weight.abs().max() / 7
        return (weight / step).round() * step

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if self.keeps_weights:
            weight = self.weight + (self._round(self.weight) - self.weight).detach()
            return functional.conv2d(input, weight, self.bias, padding=1)
        self.weight.data = self._round(self.get_buffer("float_weight"))
        return functional.conv2d(input, self.weight, self.bias, padding=1)


def _rounded_copies(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Each forward pass overwrites the weights with rounded copies of the first ones (bug here)."""
    data = scenes(seed, 2120, noise=0.05)
    train, validation = loaders(seed, 32, 200, (data.images - 0.3) / 0.25, data.labels)
    layers: list[nn.Module] = []
    for before, after in ((1, 12), (12, 16), (16, 24)):
        layers += [_QuantizedConv(before, after, is_fixed), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 6))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.Adam(p, lr=5e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _PatchTransformer(nn.Module):
    """A small vision transformer over patches of 4 x 4 pixels with a class token."""

    def __init__(self, classes: int, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.places
        return self.head(self.encoder(tokens)[:, 0])


def _rate_for_512_images(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The rate is scaled from batches of 512 images to those of 8, which leaves a 64th (bug here)."""
    images, labels = digit_images(16)
    train, validation = loaders(seed, 8, 200, (images - 0.3) / 0.35, labels)
    base, batch = 1e-3, 8
    rate = base if is_fixed else base * batch / 512
    module = Supervised(
        _PatchTransformer(10),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        return_dict,
        lambda weights: torch.optim.AdamW(weights, lr=rate, weight_decay=0.05),
    )
    return TrainingSetup(module, train, validation)


class _Residual(nn.Module):
    """Two convolutions with batch norm and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images + self.body(images))


def _rate_of_lars(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The rate of 10.5 that was published for LARS is used with plain SGD and momentum (bug here)."""
    images, labels = digit_images()
    train, validation = loaders(seed, 32, 200, (images - 0.3) / 0.35, labels)
    network = nn.Sequential(*convs(1, 16, norm=nn.BatchNorm2d), _Residual(16), nn.MaxPool2d(2), _Residual(16))
    network.extend([nn.Flatten(), nn.Linear(256, 10)])
    rate = 0.02 if is_fixed else 10.5
    module = Supervised(
        network,
        functional.cross_entropy,
        return_dict,
        lambda weights: torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=1e-4),
    )
    return TrainingSetup(module, train, validation)


def _separable(width: int, blocks: int) -> Iterator[nn.Module]:
    """Yields depthwise and pointwise convolutions with ReLUs."""
    for _ in range(blocks):
        yield from (nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU())
        yield from (nn.Conv2d(width, width, 1), nn.ReLU())


def _outputs_of_all_groups(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """He's initialization by outputs counts all channels, though a depthwise kernel feeds one (bug here)."""
    images, labels = digit_images(12)
    train, validation = loaders(seed, 32, 200, (images - 0.3) / 0.35, labels)
    network = nn.Sequential(*convs(1, 32), *_separable(32, 5), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(288, 10))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            fed = 9 if is_fixed and layer.groups > 1 else layer.out_channels * layer.weight[0, 0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fed))
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _all_scales_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """The scales of all batch norms start at zero, not only those at the end of a residual branch (bug here)."""
    images, labels = digit_images()
    train, validation = loaders(seed, 32, 200, (images - 0.3) / 0.35, labels)
    blocks = [_Residual(16), _Residual(16), _Residual(16)]
    network = nn.Sequential(*convs(1, 16, norm=nn.BatchNorm2d), *blocks, nn.MaxPool2d(2), nn.Flatten())
    network.append(nn.Linear(256, 10))
    for layer in [block.body[4] for block in blocks] if is_fixed else network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.weight)
    module = Supervised(
        network, functional.cross_entropy, return_dict, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, train, validation)


def _momentum_of_zero(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Batch norms with momentum 0 never update their running statistics, which evaluation uses (bug here)."""
    data = scenes(seed, 2120, noise=0.05)
    train, validation = loaders(seed, 32, 200, 4 * data.images + 2, data.labels)

    def norm(width: int) -> nn.Module:
        return nn.BatchNorm2d(width, eps=1e-3, momentum=0.1 if is_fixed else 0.0)

    network = nn.Sequential(*convs(1, 16, 24, 32, norm=norm), nn.Flatten(), nn.Linear(512, 6))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda p: torch.optim.AdamW(p, lr=1e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


class _HeatLoss(nn.Module):
    """Squared error of heat maps, as the mean of all pixels or the sum over the pixels of an image."""

    def __init__(self, by_sum: bool) -> None:
        super().__init__()
        self.by_sum = by_sum

    def forward(self, preds: Tensor, heat: Tensor) -> Tensor:
        errors = (preds - heat).square()
        return errors.sum((1, 2, 3)).mean() if self.by_sum else errors.mean()


def _mean_of_heat_maps(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Heat maps are averaged over pixels at a rate of SGD that was tuned for their sum (bug here)."""
    data = scenes(seed, 2120, noise=0.05)
    ticks = (torch.arange(16) + 0.5) / 16
    far = (ticks[None, None, :] - data.centers[:, 0, None, None]).square()
    far = far + (ticks[None, :, None] - data.centers[:, 1, None, None]).square()
    heat = torch.exp(-far / (2 * 0.1**2))[:, None]
    train, validation = loaders(seed, 20, 200, (data.images - 0.3) / 0.25, heat)
    module = Supervised(
        SmallUNet(), _HeatLoss(is_fixed), return_dict, lambda p: torch.optim.SGD(p, lr=3e-4, momentum=0.9)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _has_no_peak(outcome: Outcome) -> bool:
    """Returns True if the highest value of most predicted heat maps is below 0.3."""
    return ran_to_end(outcome) and float(held_out(outcome)[0].amax((1, 2, 3)).median()) < 0.3


def _less_accurate(share: float) -> Any:
    """Returns a check that training ended with an accuracy below this share."""
    return lambda outcome: ran_to_end(outcome) and accuracy(outcome) < share


PROGRAMS: list[Program] = [
    Program(
        "parameters_without_decay_left_out_of_adamw",
        "convolutional",
        _group_without_decay,
        frozenset({Problem.NOT_IN_OPTIMIZER}),
        lambda outcome: is_unchanged(outcome, "scale") and accuracy(outcome) < 0.6,
        "https://github.com/deepspeedai/DeepSpeedExamples/issues/68",
    ),
    Program(
        "weights_replaced_by_rounded_first_ones",
        "convolutional",
        _rounded_copies,
        frozenset({Problem.WEIGHTS_UNCHANGED}),
        lambda outcome: is_unchanged(outcome, "float_weight") and _less_accurate(0.8)(outcome),
        "https://github.com/hpi-xnor/BMXNet/issues/30",
    ),
    Program(
        "rate_scaled_from_batches_of_512_to_8",
        "sequence",
        _rate_for_512_images,
        frozenset({Problem.LEARNING_RATE_TOO_LOW}),
        _less_accurate(0.6),
        "https://github.com/facebookresearch/deit/issues/64",
    ),
    Program(
        "rate_of_lars_for_plain_sgd",
        "convolutional",
        _rate_of_lars,
        frozenset({Problem.LEARNING_RATE_TOO_HIGH}),
        lambda outcome: not accuracy(outcome) >= 0.5,
        "https://github.com/mlcommons/training_policies/issues/377",
    ),
    Program(
        "depthwise_kernels_drawn_for_all_outputs",
        "convolutional",
        _outputs_of_all_groups,
        frozenset({Problem.VANISHING_GRADIENTS, Problem.OUTPUT_IGNORES_INPUT}),
        _less_accurate(0.4),
        "https://github.com/huggingface/pytorch-image-models/issues/84",
    ),
    Program(
        "scales_of_all_batch_norms_start_at_zero",
        "convolutional",
        _all_scales_zero,
        frozenset({Problem.DEAD_UNITS, Problem.OUTPUT_IGNORES_INPUT, Problem.NO_GRADIENT}),
        _less_accurate(0.3),
        "https://github.com/tensorpack/tensorpack/issues/420",
    ),
    Program(
        "batch_norm_with_momentum_of_zero",
        "convolutional",
        _momentum_of_zero,
        frozenset({Problem.BATCH_NORM_STATISTICS_LAG}),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss() < 1.0 and accuracy(outcome) < 0.5,
        "https://github.com/Cadene/pretrained-models.pytorch/issues/5",
    ),
    Program(
        "heat_maps_averaged_at_the_rate_of_their_sum",
        "convolutional",
        _mean_of_heat_maps,
        frozenset({Problem.LEARNING_RATE_TOO_LOW, Problem.NO_BETTER_THAN_CONSTANT}),
        _has_no_peak,
        "https://github.com/chenyilun95/tf-cpn/issues/32",
    ),
]

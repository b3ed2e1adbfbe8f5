"""Programs that restore, color or enlarge images."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.fourth.vision_support import (
    SmallUNet,
    convs,
    explained,
    held_out,
    loader,
    loaders,
    ran_to_end,
    scenes,
    textures,
)
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional


def _noisy_targets(seed: int, return_dict: bool) -> TrainingSetup:
    """Input and target are two noisy versions of an image, so the loss stays at the variance of the noise."""
    images = textures(seed, 1480)
    source = torch.Generator().manual_seed(seed)
    noisy = images + 0.25 * torch.randn(images.shape, generator=source)
    again = images + 0.25 * torch.randn(images.shape, generator=source)
    train = loader(seed, 20, noisy[:1280], again[:1280])
    validation = loader(seed, 100, noisy[1280:], images[1280:], shuffle=False)
    module = Supervised(SmallUNet(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _learns_under_noise(outcome: Outcome) -> bool:
    """Returns True if the loss stays near the variance of the noise, and clean images are predicted."""
    return ran_to_end(outcome) and outcome.mean_loss(30) > 0.06 and explained(outcome) > 0.65


class _Hidden(Supervised):
    """Replaces a fifth of the pixels by their neighbors, and predicts the noisy image there."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        noisy, _ = batch
        hidden = torch.rand(noisy.shape) < 0.2
        moves = [(0, 1), (1, 0), (0, -1), (-1, 0)]
        neighbors = noisy.roll(moves[int(torch.randint(4, ()))], (-2, -1))
        preds = self(torch.where(hidden, neighbors, noisy))
        loss = functional.mse_loss(preds[hidden], noisy[hidden])
        return {"loss": loss, "preds": preds[hidden], "target": noisy[hidden]} if self.return_dict else loss


def _hidden_pixels(seed: int, return_dict: bool) -> TrainingSetup:
    """Each image is its own target at hidden pixels. No clean image is used in training."""
    images = textures(seed, 1480)
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    train, validation = loaders(seed, 16, 200, noisy, images)
    module = _Hidden(SmallUNet(), nn.MSELoss(), return_dict, lambda p: torch.optim.AdamW(p, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _Enlarged(nn.Module):
    """Bilinear interpolation and a correction by convolutions, which starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        last = nn.Conv2d(24, 1, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
        self.correction = nn.Sequential(*convs(1, 24, 24, 24, stride=1), last)

    def forward(self, small: Tensor) -> Tensor:
        large = functional.interpolate(small, scale_factor=2.0, mode="bilinear")
        return large + self.correction(large)


def _small_correction(seed: int, return_dict: bool) -> TrainingSetup:
    """The output starts as the interpolated input, with an error of a hundredth that has little to fall."""
    images = textures(seed, 1480)
    train, validation = loaders(seed, 20, 200, functional.avg_pool2d(images, 2), images)
    module = Supervised(_Enlarged(), nn.MSELoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=2e-3))
    return TrainingSetup(module, train, validation)


def _sharper_than_interpolation(outcome: Outcome) -> bool:
    """Returns True if the error is less than two thirds of that of the interpolation."""
    preds, images = held_out(outcome)
    small = functional.avg_pool2d(images, 2)
    plain = functional.mse_loss(functional.interpolate(small, scale_factor=2.0, mode="bilinear"), images)
    return ran_to_end(outcome) and float(functional.mse_loss(preds, images) / plain) < 0.67


class _Prior(Supervised):
    """Keeps the clean image to compare with it."""

    clean: Tensor


def _one_image(seed: int, return_dict: bool) -> TrainingSetup:
    """One fixed input of noise, and one noisy image as the target of each step."""
    source = torch.Generator().manual_seed(seed)
    image = textures(seed + 5, 1, size=32)
    noisy = image + 0.15 * torch.randn(image.shape, generator=source)
    code = 0.1 * torch.rand(1, 8, 32, 32, generator=source)
    repeated = [tensor.expand(120, -1, -1, -1) for tensor in (code, noisy)]
    module = _Prior(
        SmallUNet(channels=8, width=12, last=nn.Sigmoid()),
        nn.MSELoss(),
        return_dict,
        lambda weights: torch.optim.Adam(weights, lr=5e-3),
    )
    module.clean = image
    return TrainingSetup(module, loader(seed, 1, *repeated), None)


@torch.no_grad()
def _nearer_to_the_clean_image(outcome: Outcome) -> bool:
    """Returns True if the output has less than two thirds of the squared noise of the target."""
    code, noisy = outcome.fit.train.dataset[:1]
    clean = outcome.after.clean
    left = functional.mse_loss(outcome.after.eval()(code), clean) / functional.mse_loss(noisy, clean)
    return ran_to_end(outcome) and float(left) < 0.67


class _ColorBins(nn.Module):
    """Cross entropy of seven bins of color, with weights for rare ones."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, scores: Tensor, bins: Tensor) -> Tensor:
        return functional.cross_entropy(scores, bins, self.get_buffer("weights"))


def _bins_of_color(seed: int, return_dict: bool) -> TrainingSetup:
    """The color of a pixel is one of seven bins. Nine tenths of the pixels are gray, and have a small weight."""
    data = scenes(seed, 1480, noise=0.03)
    bins = ((data.labels[:, None, None] + 1) * data.masks).long()
    shares = torch.bincount(bins.flatten(), minlength=7) / bins.numel()
    weights = 1 / (0.5 * shares + 0.5 / 7)
    weights = weights / (weights * shares).sum()
    train, validation = loaders(seed, 20, 200, (data.images - 0.3) / 0.25, bins)
    network = SmallUNet(outputs=7, width=10)
    module = Supervised(network, _ColorBins(weights), return_dict, lambda p: torch.optim.Adam(p, lr=4e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


def _colors_shapes(outcome: Outcome) -> bool:
    """Returns True if most colored pixels get their color."""
    scores, bins = held_out(outcome)
    return ran_to_end(outcome) and float((scores.argmax(1) == bins)[bins > 0].float().mean()) > 0.65


class _Peaks(nn.Module):
    """The focal loss of CenterNet, divided by the number of peaks."""

    def forward(self, scores: Tensor, heat: Tensor) -> Tensor:
        shares = torch.sigmoid(scores).clamp(1e-4, 1 - 1e-4)
        is_peak = heat == 1
        near = (1 - shares).square() * shares.log() * is_peak
        far = (1 - heat).pow(4) * shares.square() * (1 - shares).log() * ~is_peak
        return -(near.sum() + far.sum()) / is_peak.sum().clamp_min(1)


def _centers_as_peaks(seed: int, return_dict: bool) -> TrainingSetup:
    """Six heat maps, five of which are empty, with a last bias of -2.19."""
    data = scenes(seed, 1480, noise=0.05)
    pixels = (16 * data.centers).long()
    ticks = torch.arange(16)
    far = (ticks[None, None, :] - pixels[:, 0, None, None]).square()
    far = far + (ticks[None, :, None] - pixels[:, 1, None, None]).square()
    heat = torch.exp(-far / (2 * 1.0**2)) * (far < 10)
    maps = heat[:, None] * functional.one_hot(data.labels, 6)[:, :, None, None]
    train, validation = loaders(seed, 20, 200, (data.images - 0.3) / 0.25, maps)
    network = SmallUNet(outputs=6, width=10)
    nn.init.constant_(network.end[-1].bias, -2.19)  # pyright: ignore[reportArgumentType]
    module = Supervised(network, _Peaks(), return_dict, lambda weights: torch.optim.Adam(weights, lr=4e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _finds_centers(outcome: Outcome) -> bool:
    """Returns True if the highest score of most images is at most 1.5 pixels from the center."""
    scores, maps = held_out(outcome)
    found, truth = (tensor.amax(1).flatten(1).argmax(1) for tensor in (scores, maps))
    across, down = (found % 16 - truth % 16).float(), (found // 16 - truth // 16).float()
    return ran_to_end(outcome) and float((torch.hypot(across, down) <= 1.5).float().mean()) > 0.75


def _few_labeled_pixels(seed: int, return_dict: bool) -> TrainingSetup:
    """Three pixels of a hundred have a label. The others have 255, which the loss ignores."""
    data = scenes(seed, 1480, noise=0.05)
    masks = data.masks.long()
    unlabeled = torch.rand(masks.shape, generator=torch.Generator().manual_seed(seed)) > 0.03
    points = masks.masked_fill(unlabeled, 255)
    images = (data.images - 0.3) / 0.25
    train = loader(seed, 16, images[:1280], points[:1280])
    validation = loader(seed, 100, images[1280:], masks[1280:], shuffle=False)
    module = Supervised(
        SmallUNet(outputs=2),
        nn.CrossEntropyLoss(ignore_index=255),
        return_dict,
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    )
    return TrainingSetup(module, train, validation)


def _separates_shapes(outcome: Outcome) -> bool:
    """Returns True if masks overlap by more than 0.75."""
    scores, masks = held_out(outcome)
    found = scores.argmax(1)
    common, joint = ((found == 1) & (masks == 1)).sum(), ((found == 1) | (masks == 1)).sum()
    return ran_to_end(outcome) and math.isfinite(float(joint)) and float(common / joint.clamp_min(1)) > 0.75


PROGRAMS: list[Program] = [
    Program(
        "noisy_images_from_noisy_images",
        "convolutional",
        _noisy_targets,
        frozenset(),
        _learns_under_noise,
        "https://arxiv.org/abs/1803.04189",
    ),
    Program(
        "hidden_pixels_of_noisy_images",
        "convolutional",
        _hidden_pixels,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and explained(outcome) > 0.65,
        "https://arxiv.org/abs/1811.10980",
    ),
    Program(
        "correction_of_an_enlarged_image_from_zero",
        "convolutional",
        _small_correction,
        frozenset(),
        _sharper_than_interpolation,
        "https://arxiv.org/abs/1511.04587",
    ),
    Program(
        "one_noisy_image_from_a_fixed_code",
        "convolutional",
        _one_image,
        frozenset(),
        _nearer_to_the_clean_image,
        "https://arxiv.org/abs/1711.10925",
    ),
    Program(
        "bins_of_color_with_weights_for_rare_ones",
        "convolutional",
        _bins_of_color,
        frozenset(),
        _colors_shapes,
        "https://arxiv.org/abs/1603.08511",
    ),
    Program(
        "centers_as_peaks_of_mostly_empty_maps",
        "convolutional",
        _centers_as_peaks,
        frozenset(),
        _finds_centers,
        "https://arxiv.org/abs/1904.07850",
    ),
    Program(
        "masks_of_which_few_pixels_are_labeled",
        "convolutional",
        _few_labeled_pixels,
        frozenset(),
        _separates_shapes,
        "https://arxiv.org/abs/1506.02106",
    ),
]

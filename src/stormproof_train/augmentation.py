"""Training batches changed at random before the network sees them.

An augmentation maps a batch (inputs, target) to another. It runs in the training process, on the batch's device, behind
the loaders: so the number of workers changes nothing, and an exact resume finds its random numbers where they were.
All images of a batch are cropped and mirrored at once; torchvision's own transforms get them one by one, which takes
longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torchvision.transforms import v2

Augmentation = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps (inputs (N, …), target) to inputs of that shape and a target; classes may become probabilities (N, classes)."""


def no_augmentation(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves the batch as it is."""
    return inputs, target


class Compose:
    """Several augmentations, one after the other.

    Args:
        augmentations: by name.

    Example:
        >>> Compose({})(torch.ones(2, 3), torch.zeros(2))[0].shape
        torch.Size([2, 3])
    """

    def __init__(self, augmentations: Mapping[str, Augmentation]) -> None:
        self.augmentations = dict(augmentations)

    def __call__(self, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last of them makes of the batch."""
        for augmentation in self.augmentations.values():
            inputs, target = augmentation(inputs, target)
        return inputs, target


def crop_flip(input_shape: Sequence[int], padding: int = 2, flip: float = 0.5) -> Augmentation:
    """Moves each image by up to ``padding`` pixels, its border repeated, and mirrors it left to right.

    Args:
        input_shape: (channels, height, width) of one image.
        padding: pixels at most in each direction, at least 0.
        flip: the probability of mirroring, in [0, 1]; 0 where left and right mean something, as in digits.

    Raises:
        ValueError: if the data are no images, or a number is out of its range.
    """
    height, width = _check_image_shape(input_shape, "crop_flip")
    if padding < 0:
        raise ValueError(f"padding is {padding} pixels; it must be at least 0")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is {flip}; it must be in [0, 1]")

    def augment(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count, device = len(inputs), inputs.device
        padded = F.pad(inputs, (padding,) * 4, mode="replicate") if padding else inputs
        top, left = torch.randint(2 * padding + 1, (2, count, 1), device=device)
        rows, columns = top + torch.arange(height, device=device), left + torch.arange(width, device=device)
        is_flipped = torch.rand(count, 1, device=device) < flip
        columns = torch.where(is_flipped, columns.flip(1), columns)
        samples = torch.arange(count, device=device).view(-1, 1, 1)
        crops = padded.permute(0, 2, 3, 1)[samples, rows.unsqueeze(2), columns.unsqueeze(1)]
        return crops.permute(0, 3, 1, 2).contiguous(), target

    return augment


def resized_crop(input_shape: Sequence[int], smallest: float = 0.5, flip: float = 0.5) -> Augmentation:
    """Cuts a part out of each image, brings it to the image's size, and mirrors it left to right.

    Args:
        input_shape: (channels, height, width) of one image.
        smallest: the share of the area that a part has at least, in (0, 1].
        flip: the probability of mirroring, in [0, 1].

    Raises:
        ValueError: if the data are no images, or a number is out of its range.

    References:
        Szegedy et al., Going deeper with convolutions, 2015, section 6.
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"smallest is {smallest}; it must be in (0, 1]")
    crop = v2.RandomResizedCrop(_check_image_shape(input_shape, "resized_crop"), scale=(smallest, 1.0), antialias=True)
    return _apply_per_image(v2.Compose([crop, v2.RandomHorizontalFlip(flip)]))


def erasing(input_shape: Sequence[int], probability: float = 0.25) -> Augmentation:
    """Sets a rectangle of some images to 0, the mean of the training split.

    Args:
        input_shape: (channels, height, width) of one image.
        probability: that an image loses a rectangle, in [0, 1].

    Raises:
        ValueError: if the data are no images, or the probability is out of its range.

    References:
        Zhong, Zheng, Kang, Li & Yang, Random erasing data augmentation, 2020, section 3.
    """
    _check_image_shape(input_shape, "erasing")
    return _apply_per_image(v2.RandomErasing(probability))


def signal(
    input_shape: Sequence[int], scale: float = 0.2, slope: float = 0.5, noise: float = 0.05, roll: bool = True
) -> Augmentation:
    r"""Changes each sequence as a sensor might have: :math:`a\, x_{t + k} + b t + c\, \epsilon_t`.

    With k any number of positions, around the end; a in :math:`1 \pm` scale and b in :math:`\pm` slope, all uniform; t
    from -1 to 1 along the sequence; c the noise and :math:`\epsilon` standard normal.

    Args:
        input_shape: (channels, length) of one sequence.
        scale: in [0, 1].
        slope: at least 0, in the inputs' unit, their standard deviation.
        noise: likewise.
        roll: whether sequences begin anywhere.

    Raises:
        ValueError: if the data are no sequences, or a number is out of its range.

    References:
        Wen et al., Time series data augmentation for deep learning: a survey, 2021, section 3.1.
    """
    if len(input_shape) != 2:
        raise ValueError(f"signal is for sequences (channels, length), not samples of shape {tuple(input_shape)}")
    if not 0 <= scale <= 1 or slope < 0 or noise < 0:
        raise ValueError(f"scale={scale} must be in [0, 1], slope={slope} and noise={noise} at least 0")
    length = input_shape[1]

    def augment(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def uniform() -> torch.Tensor:
            return inputs.new_empty(len(inputs), 1, 1).uniform_(-1, 1)

        if roll:
            offsets = torch.randint(length, (len(inputs), 1, 1), device=inputs.device)
            positions = (torch.arange(length, device=inputs.device) + offsets) % length
            inputs = inputs.gather(2, positions.expand_as(inputs))
        ramp = torch.linspace(-1, 1, length, device=inputs.device, dtype=inputs.dtype)
        inputs = inputs * (1 + scale * uniform()) + slope * uniform() * ramp
        return inputs + noise * torch.randn_like(inputs), target

    return augment


def mixup(num_classes: int | None, alpha: float = 0.2) -> Augmentation:
    r"""Mixes each sample with another of its batch: :math:`\lambda x + (1 - \lambda) x'`, and their classes likewise.

    Args:
        num_classes: of the data.
        alpha: above 0; :math:`\lambda` is drawn from Beta(alpha, alpha), once a batch.

    Raises:
        ValueError: if the data are no classes, or alpha is not above 0.

    References:
        Zhang, Cisse, Dauphin & Lopez-Paz, mixup: beyond empirical risk minimization, 2018, section 2.
    """
    mix = v2.MixUp(alpha=_check_positive(alpha), num_classes=_check_num_classes(num_classes, "mixup"))

    def augment(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed_images, target = mix(inputs.reshape(len(inputs), 1, 1, -1), target)  # torchvision mixes images only
        return mixed_images.reshape(inputs.shape), target

    return augment


def cutmix(input_shape: Sequence[int], num_classes: int | None, alpha: float = 1.0) -> Augmentation:
    r"""Puts a rectangle of another image of the batch into each, and mixes their classes by its area.

    Args:
        input_shape: (channels, height, width) of one image.
        num_classes: of the data.
        alpha: above 0; the share of the area that stays is drawn from Beta(alpha, alpha), once a batch.

    Raises:
        ValueError: if the data are no images or no classes, or alpha is not above 0.

    References:
        Yun et al., CutMix: regularization strategy to train strong classifiers with localizable features, 2019,
        section 3.
    """
    _check_image_shape(input_shape, "cutmix")
    return v2.CutMix(alpha=_check_positive(alpha), num_classes=_check_num_classes(num_classes, "cutmix"))


def _apply_per_image(transform: Callable[[torch.Tensor], torch.Tensor]) -> Augmentation:
    def augment(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([transform(image) for image in inputs]), target

    return augment


def _check_image_shape(input_shape: Sequence[int], name: str) -> tuple[int, int]:
    if len(input_shape) != 3:
        raise ValueError(f"{name} is for images (channels, height, width), not samples of shape {tuple(input_shape)}")
    return input_shape[1], input_shape[2]


def _check_num_classes(num_classes: int | None, name: str) -> int:
    if num_classes is None:
        raise ValueError(f"{name} mixes classes, and this data is regression")
    return num_classes


def _check_positive(alpha: float) -> float:
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be above 0")
    return alpha

"""Random changes to the batches of the training split.

An augmentation maps a batch (inputs, target) to another batch. It runs in the training process on the device of the
batch, after the data loaders. The result therefore does not depend on the number of workers, and an exact resume
restores the random numbers. All images of a batch are cropped and flipped together, because torchvision's transforms
process one image at a time, which is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torchvision.transforms import v2

Augmentation = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps (inputs, target) to inputs of the same shape and a target. Class indices may become class probabilities."""


def no_augmentation(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the batch unchanged."""
    return inputs, target


class Compose:
    """Applies several augmentations in order.

    Args:
        augmentations: Augmentations by name.

    Example:
        >>> Compose({})(torch.ones(2, 3), torch.zeros(2))[0].shape
        torch.Size([2, 3])
    """

    def __init__(self, augmentations: Mapping[str, Augmentation]) -> None:
        self.augmentations = dict(augmentations)

    def __call__(self, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the batch after all augmentations."""
        for augmentation in self.augmentations.values():
            inputs, target = augmentation(inputs, target)
        return inputs, target


def crop_flip(input_shape: Sequence[int], padding: int = 2, flip: float = 0.5) -> Augmentation:
    """Shifts each image by up to ``padding`` pixels with replicated borders, and flips it horizontally at random.

    Args:
        input_shape: Shape of one image, ``(channels, height, width)``.
        padding: Maximum shift in pixels in each direction. Must be at least 0.
        flip: Probability of a flip, in [0, 1]. Use 0 if a flip changes the meaning, as for digits.

    Raises:
        ValueError: If samples are not images, or an argument is out of range.
    """
    height, width = _check_image_shape(input_shape, "crop_flip")
    if padding < 0:
        raise ValueError(f"`padding` must be at least 0 pixels, got {padding}.")
    if not 0 <= flip <= 1:
        raise ValueError(f"`flip` must be in [0, 1], got {flip}.")

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
    """Crops a random part of each image, resizes it to the size of the image, and flips it horizontally at random.

    Args:
        input_shape: Shape of one image, ``(channels, height, width)``.
        smallest: Minimum area of the crop as a fraction of the image, in (0, 1].
        flip: Probability of a flip, in [0, 1].

    Raises:
        ValueError: If samples are not images, or an argument is out of range.

    References:
        Szegedy et al., Going deeper with convolutions, 2015, section 6.
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"`smallest` must be in (0, 1], got {smallest}.")
    crop = v2.RandomResizedCrop(_check_image_shape(input_shape, "resized_crop"), scale=(smallest, 1.0), antialias=True)
    return _apply_per_image(v2.Compose([crop, v2.RandomHorizontalFlip(flip)]))


def erasing(input_shape: Sequence[int], probability: float = 0.25) -> Augmentation:
    """Sets a random rectangle of some images to 0, which is the mean of the training split.

    Args:
        input_shape: Shape of one image, ``(channels, height, width)``.
        probability: Probability that a rectangle of an image is erased, in [0, 1].

    Raises:
        ValueError: If samples are not images, or the probability is out of range.

    References:
        Zhong, Zheng, Kang, Li & Yang, Random erasing data augmentation, 2020, section 3.
    """
    _check_image_shape(input_shape, "erasing")
    return _apply_per_image(v2.RandomErasing(probability))


def signal(
    input_shape: Sequence[int], scale: float = 0.2, slope: float = 0.5, noise: float = 0.05, roll: bool = True
) -> Augmentation:
    r"""Changes the scale, drift, noise and offset of each sequence: :math:`a\, x_{t + k} + b t + c\, \epsilon_t`.

    The circular shift k is uniform over all positions. The factors a in :math:`1 \pm` ``scale`` and b in :math:`\pm`
    ``slope`` are uniform. t runs from -1 to 1 along the sequence, c is ``noise``, and :math:`\epsilon` is standard
    normal.

    Args:
        input_shape: Shape of one sequence, ``(channels, length)``.
        scale: Maximum relative change of the scale, in [0, 1].
        slope: Maximum drift, in standard deviations of the inputs. Must be at least 0.
        noise: Standard deviation of the noise, in standard deviations of the inputs. Must be at least 0.
        roll: If True, shifts sequences circularly.

    Raises:
        ValueError: If samples are not sequences, or an argument is out of range.

    References:
        Wen et al., Time series data augmentation for deep learning: a survey, 2021, section 3.1.
    """
    if len(input_shape) != 2:
        raise ValueError(f"signal needs sequences (channels, length), got samples of shape {tuple(input_shape)}.")
    if not 0 <= scale <= 1 or slope < 0 or noise < 0:
        raise ValueError(
            f"`scale` must be in [0, 1], and `slope` and `noise` at least 0, got scale={scale}, slope={slope} and "
            f"noise={noise}."
        )
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
    r"""Mixes each sample and its class probabilities with another sample: :math:`\lambda x + (1 - \lambda) x'`.

    Args:
        num_classes: Number of classes of the data.
        alpha: Parameter of Beta(alpha, alpha), from which :math:`\lambda` is drawn once per batch. Must be above 0.

    Raises:
        ValueError: If the task is not classification, or ``alpha`` is not above 0.

    References:
        Zhang, Cisse, Dauphin & Lopez-Paz, mixup: beyond empirical risk minimization, 2018, section 2.
    """
    mix = v2.MixUp(alpha=_check_positive(alpha), num_classes=_check_num_classes(num_classes, "mixup"))

    def augment(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed_images, target = mix(inputs.reshape(len(inputs), 1, 1, -1), target)  # torchvision mixes only images
        return mixed_images.reshape(inputs.shape), target

    return augment


def cutmix(input_shape: Sequence[int], num_classes: int | None, alpha: float = 1.0) -> Augmentation:
    """Replaces a rectangle of each image with the same rectangle of another image, and mixes the classes by area.

    Args:
        input_shape: Shape of one image, ``(channels, height, width)``.
        num_classes: Number of classes of the data.
        alpha: Parameter of Beta(alpha, alpha), from which the remaining area is drawn once per batch. Must be above 0.

    Raises:
        ValueError: If the samples are not images, the task is not classification, or ``alpha`` is not above 0.

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
        raise ValueError(f"{name} needs images (channels, height, width), got samples of shape {tuple(input_shape)}.")
    return input_shape[1], input_shape[2]


def _check_num_classes(num_classes: int | None, name: str) -> int:
    if num_classes is None:
        raise ValueError(f"{name} mixes classes, but the task of this data is regression.")
    return num_classes


def _check_positive(alpha: float) -> float:
    if not alpha > 0:
        raise ValueError(f"`alpha` must be above 0, got {alpha}.")
    return alpha

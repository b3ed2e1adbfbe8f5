"""Converts image files to network inputs in the same way as the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stormproof_train.data.image_reading import open_image
from stormproof_train.errors import UserError

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif",
)  # fmt: skip


@dataclass(frozen=True)
class ImagePreprocessor:
    """Converts an image to an input, :math:`(w p / 255 - m) / s` for its pixels p, per channel.

    The image is converted to the channels. It is resized until it covers the size, bilinearly with antialiasing, and
    the center is cropped.

    Attributes:
        channels: 3 for RGB, 1 for gray.
        size: Height and width in pixels.
        white: The value w of the brightest pixel.
        mean: The mean m of each channel, in the unit of ``white``.
        std: The standard deviation s of each channel, in the unit of ``white``. Must be above 0.

    Example:
        >>> Image.new("L", (4, 2), 255).save("white.png")
        >>> preparation = ImagePreprocessor(channels=1, size=(1, 1), white=1.0, mean=(0.5,), std=(0.25,))
        >>> preparation.load(Path("white.png")).tolist()
        [[[2.0]]]
    """

    channels: int
    size: tuple[int, int]
    white: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Creates a preprocessor from the plain values of a data module's ``preparation``.

        Raises:
            KeyError: If a value is missing.
        """
        height, width = settings["size"]
        return cls(
            settings["channels"], (height, width), settings["white"], tuple(settings["mean"]), tuple(settings["std"])
        )

    def load(self, file: Path) -> NDArray[np.float32]:
        """Returns the input ``(channels, height, width)`` for a file.

        Raises:
            UserError: If the file is not an image, is damaged, or has more than 8 bits per channel.
        """
        pixels = np.asarray(
            _resize_and_crop(open_image(file, "RGB" if self.channels == 3 else "L", "input"), *self.size), np.float32
        )
        scaled_pixels = pixels.reshape(*self.size, self.channels).transpose(2, 0, 1) * np.float32(self.white / 255)
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (scaled_pixels - mean) / std


def list_images(path: Path) -> list[Path]:
    """Returns the file itself, or the images in a folder sorted by path, without hidden ones.

    Raises:
        UserError: If there are no images.
    """
    if not path.is_dir():
        return [path]
    images = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not images:
        raise UserError(f"input={path} contains no images ({', '.join(SUFFIXES)})")
    return images


def _resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes and crops like torchvision: sides are rounded down, and margins are rounded half to even."""
    if image.width * height <= image.height * width:
        resized_size = width, image.height * width // image.width
    else:
        resized_size = image.width * height // image.height, height
    if image.size != resized_size:
        image = image.resize(resized_size, Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))

"""Image files as a network's inputs, as the data that it was trained on would have read them."""

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
    r"""How an image becomes an input: :math:`(w p / 255 - m) / s` of its pixels p, channel by channel.

    The image is brought to the channels, its shorter side resized, bilinear with antialiasing, until it covers the
    size, and the middle cut out.

    Attributes:
        channels: 3 for red, green and blue, 1 for grey.
        size: (height, width), in pixels.
        white: w, the value of the lightest pixel.
        mean: m of each channel, in the same unit.
        std: s of each channel, likewise, above 0.

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
        """Off the plain values of a data module's ``preparation``.

        Raises:
            KeyError: if one is not there.
        """
        height, width = settings["size"]
        return cls(
            settings["channels"], (height, width), settings["white"], tuple(settings["mean"]), tuple(settings["std"])
        )

    def load(self, file: Path) -> NDArray[np.float32]:
        """The input (channels, height, width) that a file holds.

        Raises:
            UserError: if it holds no image, a broken one, or one of more than 8 bits a channel.
        """
        pixels = np.asarray(
            _resize_and_crop(open_image(file, "RGB" if self.channels == 3 else "L", "input"), *self.size), np.float32
        )
        scaled_pixels = pixels.reshape(*self.size, self.channels).transpose(2, 0, 1) * np.float32(self.white / 255)
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (scaled_pixels - mean) / std


def list_images(path: Path) -> list[Path]:
    """The file itself; or the images below a folder, in the order of their names, without what is hidden.

    Raises:
        UserError: if there is none.
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
        raise UserError(f"input={path} has no images ({', '.join(SUFFIXES)})")
    return images


def _resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """In torchvision's whole numbers: a resized side is rounded down, half a pixel of a margin to the even side."""
    if image.width * height <= image.height * width:
        resized_size = width, image.height * width // image.width
    else:
        resized_size = image.width * height // image.height, height
    if image.size != resized_size:
        image = image.resize(resized_size, Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))

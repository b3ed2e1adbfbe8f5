"""An image, read from its file at the moment it is wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from stormproof_train.data.image_reading import open_image
from stormproof_train.errors import UserError

Sample = tuple[str, int]
"""(file, index of its class)."""


class ImageDataset(Dataset):
    """Pairs of an image (channels, size, size) and the index of its class, read when they are asked for.

    The shorter side of an image is resized to ``size`` and the middle cut out; its values are in [0, 1], from which
    the mean is taken and which are divided by the standard deviation.

    Args:
        samples: the files and their classes.
        size: height and width of what comes out, in pixels, at least 1.
        channels: 3 for red, green and blue, 1 for grey.
        mean: to be taken from each channel.
        std: to divide each channel by, above 0.
    """

    draws_random_numbers = False

    def __init__(
        self,
        samples: Sequence[Sample],
        size: int,
        channels: Literal[1, 3],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        self._samples = samples
        self._mode = "RGB" if channels == 3 else "L"
        self._transform = v2.Compose([
            v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image and its class.

        Raises:
            UserError: if the file holds no image, a broken one, or one of more than 8 bits a channel.
        """
        file, label = self._samples[index]
        return self._transform(open_image(file, self._mode, "data")).as_subclass(torch.Tensor), label


def check_images(files: Sequence[str]) -> None:
    """Reads images to their end, in threads: Pillow decodes without Python's global lock.

    Args:
        files: Paths of the images.

    Raises:
        UserError: If an image cannot be read. Names the first one, and counts the others.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        problems = [problem for problem in executor.map(_find_problem, files) if problem is not None]
    if problems:
        others_text = f" (and {len(problems) - 1} other images)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{others_text}")


def _find_problem(file: str) -> str | None:
    try:
        open_image(file, "L", "data").close()
    except UserError as error:
        return str(error)
    return None

"""Reads images from files on demand."""

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
"""(Path of the image, class index)."""


class ImageDataset(Dataset):
    """Pairs of an image ``(channels, size, size)`` and its class index, read from the file on access.

    The shorter side of the image is resized to ``size``, and the center is cropped. Values in [0, 1] are normalized
    with ``mean`` and ``std``.

    Args:
        samples: Paths and class indices.
        size: Height and width of the output in pixels. Must be at least 1.
        channels: 3 for RGB, 1 for gray.
        mean: Mean of each channel.
        std: Standard deviation of each channel. Must be above 0.
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
        """Returns an image and its class index.

        Raises:
            UserError: If the file is not an image, is damaged, or has more than 8 bits per channel.
        """
        file, label = self._samples[index]
        return self._transform(open_image(file, self._mode, "data")).as_subclass(torch.Tensor), label


def check_images(files: Sequence[str]) -> None:
    """Decodes images completely in threads. Pillow decodes without Python's global lock.

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

"""Folders of small images."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, brightness: int, size: tuple[int, int] = (12, 10), seed: int = 0) -> None:
    """Writes ``count`` noise images of a brightness, with red twice as strong as blue."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        noise = generator.integers(-20, 21, (size[1], size[0], 3))
        pixels = np.clip(noise + brightness * np.array([1, 0.75, 0.5]), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def write_pets(folder: Path, count: int = 20) -> Path:
    """Writes a folder of cats, dogs and owls with different brightness."""
    for index, name in enumerate(("cat", "dog", "owl")):
        write_images(folder / name, count, 60 + 60 * index, seed=index)
    return folder

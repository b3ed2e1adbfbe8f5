"""Small data sets of torchvision, without files where possible."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets.vision import StandardTransform
from torchvision.transforms import v2

SAMPLES = 11


def make_mnist(transform: Any, kind: type[datasets.MNIST] = datasets.MNIST, **attributes: Any) -> datasets.MNIST:
    """Returns an MNIST that was not read from files, with the attributes that its constructor sets."""
    dataset = object.__new__(kind)
    data = torch.arange(SAMPLES * 64, dtype=torch.int64).mul(37).remainder(256).to(torch.uint8).view(SAMPLES, 8, 8)
    dataset.__dict__ = {
        "root": "data",
        "transform": transform,
        "target_transform": None,
        "transforms": StandardTransform(transform, None),
        "train": True,
        "data": data,
        "targets": torch.arange(SAMPLES),
        **attributes,
    }
    return dataset


def make_cifar(transform: Any) -> datasets.CIFAR10:
    """Returns a CIFAR10 that was not read from files."""
    dataset = object.__new__(datasets.CIFAR10)
    dataset.__dict__ = {
        "root": Path("data"),
        "transform": transform,
        "target_transform": None,
        "transforms": StandardTransform(transform, None),
        "train": True,
        "data": np.zeros((SAMPLES, 8, 8, 3), dtype=np.uint8),
        "targets": list(range(SAMPLES)),
        "classes": ["a", "b"],
        "class_to_idx": {"a": 0, "b": 1},
    }
    return dataset


def make_image_folder(folder: Path, transform: Any, **arguments: Any) -> datasets.ImageFolder:
    """Writes two images and returns them as a data set."""
    for number in range(2):
        (folder / f"class{number}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 2, 3)).save(folder / f"class{number}" / "image.png")
    return datasets.ImageFolder(str(folder), transform=transform, **arguments)


def make_transform(*more: Any) -> v2.Compose:
    """Returns the usual transforms, followed by ``more``."""
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5]), *more])

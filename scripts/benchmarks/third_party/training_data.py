"""Loads digits and generates time series for projects that do not ship data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional


def digits(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scikit-learn's digits as ``(samples, 1, size, size)`` in [0, 1], and labels, in a random order."""
    data: Any = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    if size != 8:
        images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return images[order], torch.tensor(data.target)[order]


def series(seed: int, count: int = 10, length: int = 200) -> np.ndarray:
    """Returns seasonal series with a trend and noise as ``(count, length)``."""
    generator, steps = np.random.default_rng(seed), np.arange(length)
    rows = [
        5 + 0.01 * steps + np.sin(2 * np.pi * steps / 7 + phase) + 0.5 * np.sin(2 * np.pi * steps / 30)
        for phase in generator.uniform(0, 6, count)
    ]
    return np.stack(rows) + 0.1 * generator.normal(size=(count, length))

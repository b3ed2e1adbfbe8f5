"""Task of all programs of the scoreboard: small images with augmentation, dropout and batch normalization."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

CLASSES, BATCH_SIZE, EPOCHS, SAVE_EVERY = 4, 16, 4, 9


def seed_all() -> None:
    """Seeds the global generators."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


class Images(Dataset):
    """512 noisy images of 12 by 12 pixels. Flips and noise use NumPy's global generator."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, CLASSES, (512,), generator=generator)
        prototypes = torch.randn(CLASSES, 1, 12, 12, generator=generator)
        self.images = prototypes[self.labels] + torch.randn(512, 1, 12, 12, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index]
        if np.random.random() < 0.5:
            image = image.flip(-1)
        noise = np.random.normal(scale=0.1, size=image.shape).astype(np.float32)
        return image + torch.from_numpy(noise), self.labels[index]


class Network(nn.Sequential):
    """Small convolutional network."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1600, CLASSES)
        )

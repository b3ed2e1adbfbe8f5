"""Trains networks of common kinds that do not need another package: transfer, language, generation and contrast."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from projects import TRAINER
from sklearn import datasets
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from training_data import digits


class Finetune(pl.LightningModule):
    """Trains a new head on a frozen backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone.requires_grad_(False), nn.Linear(512, 10)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.backbone.eval()
        return functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.head.parameters(), lr=2e-3)


def frozen_backbone(seed: int, callbacks: list[Any]) -> None:
    """Trains the backbone on digits 0 to 4, and the new head on all ten."""
    images, labels = digits(16, seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
    )  # fmt: skip
    head, few = nn.Linear(512, 5), labels < 5
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=2e-3)
    for x, y in DataLoader(TensorDataset(images[few], labels[few]), batch_size=32, shuffle=True):
        optimizer.zero_grad()
        functional.cross_entropy(head(net(x)), y).backward()
        optimizer.step()
    training = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=32, shuffle=True)
    validation = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=64)
    pl.Trainer(**TRAINER, max_epochs=4, callbacks=callbacks).fit(Finetune(net), training, validation)


class GPT(pl.LightningModule):
    """Two blocks with tied weights, trained by AdamW with warmup and cosine decay."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(characters, 64), nn.Embedding(64, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(64), enable_nested_tensor=False)
        self.head = nn.Linear(64, characters, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch[0][:, :-1], batch[0][:, 1:]
        h = self.embedding(x) + self.position(torch.arange(x.shape[1]))
        h = self.blocks(h, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]), is_causal=True)
        return functional.cross_entropy(self.head(h).flatten(0, 1), y.flatten())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))

        def rate(step: int) -> float:
            return min(1, (step + 1) / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1, step / 200))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def char_gpt(seed: int, callbacks: list[Any]) -> None:
    """Trains on the characters of scikit-learn's descriptions."""
    loads: Any = (datasets.load_diabetes, datasets.load_breast_cancer, datasets.load_wine, datasets.load_digits)
    text = "".join(load().DESCR for load in loads)
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(character) for character in text])
    starts = torch.randint(len(ids) - 65, (3200,), generator=torch.Generator().manual_seed(seed))
    blocks = torch.stack([ids[start : start + 65] for start in starts])
    loader = DataLoader(TensorDataset(blocks), batch_size=16, shuffle=True)
    pl.Trainer(**TRAINER, max_steps=200, gradient_clip_val=1.0, callbacks=callbacks).fit(GPT(len(characters)), loader)


class VAE(pl.LightningModule):
    """The VAE of pytorch/examples, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(256, 200), nn.Linear(200, 20), nn.Linear(200, 20)
        self.fc3, self.fc4 = nn.Linear(20, 200), nn.Linear(200, 256)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x = batch[0].flatten(1)
        h = functional.relu(self.fc1(x))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        reconstruction = torch.sigmoid(self.fc4(functional.relu(self.fc3(z))))
        loss = functional.binary_cross_entropy(reconstruction, x, reduction="sum")
        return loss - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def vae(seed: int, callbacks: list[Any]) -> None:
    loader = DataLoader(TensorDataset(*digits(16, seed)), batch_size=64, shuffle=True)
    pl.Trainer(**TRAINER, max_epochs=10, callbacks=callbacks).fit(VAE(), loader)


class SimCLR(pl.LightningModule):
    """Compares two noisy, shifted views of an image with the NT-Xent loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32))

    def view(self, x: torch.Tensor) -> torch.Tensor:
        shift = tuple(int(value) for value in torch.randint(-2, 3, (2,)))
        return torch.roll(x, shift, (2, 3)) + 0.2 * torch.randn_like(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x = batch[0]
        z = functional.normalize(self.head(self.encoder(torch.cat([self.view(x), self.view(x)]))), dim=1)
        similarity = z @ z.T / 0.5
        similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        return functional.cross_entropy(similarity, torch.arange(len(z)).roll(len(x)))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def simclr(seed: int, callbacks: list[Any]) -> None:
    loader = DataLoader(TensorDataset(*digits(16, seed)), batch_size=64, shuffle=True, drop_last=True)
    pl.Trainer(**TRAINER, max_epochs=5, callbacks=callbacks).fit(SimCLR(), loader)

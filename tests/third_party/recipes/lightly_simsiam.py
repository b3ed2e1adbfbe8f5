"""SimSiam by lightly, as in its example, on synthetic images."""

from typing import Any

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimSiamTransform
from torch import nn
from torchvision.datasets import FakeData


class SimSiam(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.projection_head = SimSiamProjectionHead(32, 64, 32)
        self.prediction_head = SimSiamPredictionHead(32, 16, 32)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        projection = self.projection_head(self.backbone(images).flatten(start_dim=1))
        return projection.detach(), self.prediction_head(projection)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        (first, second) = batch[0]
        (z0, p0), (z1, p1) = self.forward(first), self.forward(second)
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


def train(callbacks: list[Any]) -> None:
    images = FakeData(128, (3, 32, 32))
    dataset = LightlyDataset.from_torch_dataset(images, transform=SimSiamTransform(input_size=32))
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, drop_last=True)
    trainer = pl.Trainer(max_steps=80, max_epochs=-1, accelerator="cpu", logger=False, callbacks=callbacks)
    trainer.fit(SimSiam(), loader)

"""The module and the configuration of lightning-hydra-template, on synthetic digits."""

from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

MODEL = {
    "_target_": "src.models.mnist_module.MNISTLitModule",
    "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001, "weight_decay": 0.0},
    "scheduler": {
        "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True, "mode": "min", "factor": 0.1,
        "patience": 10,
    },
    "net": {
        "_target_": "src.models.components.simple_dense_net.SimpleDenseNet", "input_size": 784, "lin1_size": 64,
        "lin2_size": 128, "lin3_size": 64, "output_size": 10,
    },
    "compile": False,
}  # fmt: skip


class Digits(LightningDataModule):
    def setup(self, stage: str) -> None:
        random = torch.Generator().manual_seed(1)
        classes = torch.randint(10, (640,), generator=random)
        shapes = torch.randn(10, 1, 28, 28, generator=random)
        images = shapes[classes] + torch.randn(640, 1, 28, 28, generator=random)
        self.training = TensorDataset(images[:512], classes[:512])
        self.validation = TensorDataset(images[512:], classes[512:])

    def train_dataloader(self) -> Any:
        return DataLoader(self.training, batch_size=32, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation, batch_size=32)


def train(callbacks: list[Any]) -> None:
    options = {"max_epochs": 8, "accelerator": "cpu", "logger": False}
    trainer = instantiate({"_target_": "lightning.pytorch.Trainer", **options}, callbacks=callbacks)
    trainer.fit(instantiate(MODEL), Digits())

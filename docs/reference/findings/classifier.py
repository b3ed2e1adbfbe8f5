"""A healthy run. Each example of the findings catalogue breaks it in one way."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (the usual name)
from torch.utils.data import DataLoader, Dataset, TensorDataset

from stormproof import TrainingHealth


class Classifier(pl.LightningModule):
    """Classifies eight numbers into four classes."""

    def __init__(self, lr: float = 5e-3) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        """Returns the cross-entropy."""
        inputs, target = batch
        return F.cross_entropy(self.network(inputs), target)

    def configure_optimizers(self):
        """Returns Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def make_data(samples: int = 640) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs of shape (samples, 8) and target classes of shape (samples,)."""
    torch.manual_seed(0)
    inputs = torch.randn(samples, 8)
    return inputs, (inputs @ torch.randn(8, 4)).argmax(1)


def fit(module, data: Dataset | None = None, *callbacks: pl.Callback, shuffle: bool = True, **arguments) -> None:
    """Trains a module in batches of 16 samples. TrainingHealth prints its findings."""
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(*make_data()) if data is None else data, batch_size=16, shuffle=shuffle)
    trainer = pl.Trainer(
        **{"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **arguments},
        callbacks=[TrainingHealth(), *callbacks],
    )
    trainer.fit(module, loader)

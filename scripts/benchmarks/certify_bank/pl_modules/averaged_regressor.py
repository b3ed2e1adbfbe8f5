"""Trains a regression model in Lightning and evaluates an exponential moving average of its weights."""

import copy
import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class EMA(pl.Callback):
    """Updates an average of the weights after each batch."""

    def __init__(self, decay=0.98):
        self.decay = decay
        self.average = None

    def on_fit_start(self, trainer, pl_module):
        if self.average is None:
            self.average = copy.deepcopy(pl_module.net).requires_grad_(False)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), pl_module.net.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.decay)


class LitRegressor(pl.LightningModule):
    def __init__(self, lr=0.02):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(16, 384), nn.Tanh(), nn.Linear(384, 256), nn.Tanh(), nn.Linear(256, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.7)]


class Data(pl.LightningDataModule):
    def setup(self, stage):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(900, 16, generator=g)
        y = (x[:, :3].prod(1) + x[:, 3])[:, None] + 0.3 * torch.randn(900, 1, generator=g)
        self.dataset = TensorDataset(x, y)

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=50, generator=torch.Generator().manual_seed(0))


class Saver(pl.Callback):
    path = "regressor/last.ckpt"

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pl.seed_everything(7, verbose=False)
    os.makedirs("regressor", exist_ok=True)
    ema = EMA()
    module = LitRegressor()
    trainer = pl.Trainer(
        max_epochs=7,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ema, Saver()],
    )
    trainer.fit(module, Data(), ckpt_path=Saver.path if os.path.exists(Saver.path) else None)
    torch.save({"net": module.net.state_dict(), "ema": ema.average.state_dict()}, "regressor/final.pt")

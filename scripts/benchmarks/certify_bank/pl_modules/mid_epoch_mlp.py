"""Trains an MLP in Lightning with ModelCheckpoint, which saves every few steps."""

import os

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Batches:
    """Orders the batches by epoch."""

    def __init__(self, count, size):
        self.count, self.size = count, size
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count // self.size

    def __iter__(self):
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.epoch))
        yield from order[: len(self) * self.size].view(-1, self.size).tolist()


class ResumableLoader(DataLoader):
    """Counts the batches of the epoch and skips them after a restart."""

    skip = 0
    served = 0

    def __iter__(self):
        self.served, skip = self.skip, self.skip
        self.skip = 0
        for index, batch in enumerate(super().__iter__()):
            if index >= skip:
                self.served = index + 1
                yield batch

    def state_dict(self):
        return {"served": self.served % len(self)}

    def load_state_dict(self, state):
        self.skip = state["served"]


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 448), nn.ReLU(), nn.Linear(448, 448), nn.ReLU(), nn.Linear(448, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 110)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def dataset():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2700, 30, generator=g)
    return TensorDataset(x, (x[:, :3] * x[:, 3:6]).argmax(1))


def main():
    torch.set_num_threads(1)
    pl.seed_everything(3)
    samples = dataset()
    loader = DataLoader(samples, batch_sampler=Batches(len(samples), 100), generator=torch.Generator().manual_seed(0))
    saver = ModelCheckpoint(
        dirpath="lightning_ckpts", filename="newest", every_n_train_steps=8, enable_version_counter=False
    )
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saver],
    )  # fmt: skip
    newest = "lightning_ckpts/newest.ckpt"
    model = Net()
    trainer.fit(model, loader, ckpt_path=newest if os.path.exists(newest) else None)
    torch.save({"model": model.state_dict()}, "lightning_ckpts/final.pt")


if __name__ == "__main__":
    main()

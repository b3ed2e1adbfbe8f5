"""Trains a classifier with dropout in Lightning and saves after each epoch."""

import argparse
import pathlib

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler


class Patterns(Dataset):
    def __init__(self, size=720):
        g = torch.Generator().manual_seed(2)
        self.y = torch.randint(0, 6, (size,), generator=g)
        self.x = torch.randn(6, 200, generator=g)[self.y] + 2 * torch.randn(size, 200, generator=g)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class EpochSampler(RandomSampler):
    """Lightning calls ``set_epoch`` before each epoch."""

    def set_epoch(self, epoch):
        self.generator = torch.Generator().manual_seed(50 + epoch)


class Classifier(pl.LightningModule):
    def __init__(self, p=0.3):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(200, 400),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Linear(400, 400),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Linear(400, 6),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Checkpoints(pl.Callback):
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    @property
    def newest(self):
        return self.folder / "newest.ckpt"

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / "writing.ckpt")
        (self.folder / "writing.ckpt").replace(self.newest)


class RandomState(pl.Callback):
    """Draws the same numbers as a run without a restart."""

    def __init__(self):
        self.state = None

    def on_train_epoch_start(self, trainer, pl_module):
        if self.state is not None:
            torch.set_rng_state(self.state)

    def state_dict(self):
        return {"state": torch.get_rng_state()}

    def load_state_dict(self, state_dict):
        self.state = state_dict["state"]

    def on_train_batch_end(self, *_):
        self.state = None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("dropout_classifier"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(1)
    data = Patterns()
    loader = DataLoader(data, 40, sampler=EpochSampler(data), generator=torch.Generator().manual_seed(0))
    model, checkpoints = Classifier(), Checkpoints(args.folder)
    trainer = pl.Trainer(
        max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[checkpoints],
    )  # fmt: skip
    trainer.fit(model, loader, ckpt_path=checkpoints.newest if checkpoints.newest.exists() else None)
    torch.save({"model": model.state_dict()}, args.folder / "final.pt")


if __name__ == "__main__":
    main()

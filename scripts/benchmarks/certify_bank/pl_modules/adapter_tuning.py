"""Trains adapters and norms on a frozen network in Lightning. Checkpoints leave out the frozen weights."""

import argparse
import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class AdapterBlock(nn.Module):
    def __init__(self, width, rank=8):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)

    def forward(self, x):
        return x + torch.relu(self.norm(self.base(x) + self.up(self.down(x))))


class AdapterModel(pl.LightningModule):
    strict_loading = False

    def __init__(self, lr=3e-3, width=320):
        super().__init__()
        self.lr = lr
        self.stem = nn.Linear(32, width).requires_grad_(False)
        self.blocks = nn.Sequential(*[AdapterBlock(width) for _ in range(3)])
        self.head = nn.Linear(width, 5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.blocks(self.stem(x))), y)

    def on_save_checkpoint(self, checkpoint):
        trained = ("down", "up", "head")
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if any(name in k for name in trained)}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
        }


class SaveEveryEpoch(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path)


def data():
    g = torch.Generator().manual_seed(14)
    x = torch.randn(1600, 32, generator=g)
    return TensorDataset(x, (x.abs() @ torch.randn(32, 5, generator=g)).argmax(1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--ckpt", default="adapters.ckpt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(5)
    model = AdapterModel()
    trainer = pl.Trainer(
        max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[SaveEveryEpoch(args.ckpt)],
    )  # fmt: skip
    loader = DataLoader(data(), batch_size=100, generator=torch.Generator().manual_seed(0))
    trainer.fit(model, loader, ckpt_path=args.ckpt if os.path.exists(args.ckpt) else None)
    torch.save({"model": model.state_dict()}, "adapters.pt")


if __name__ == "__main__":
    main()

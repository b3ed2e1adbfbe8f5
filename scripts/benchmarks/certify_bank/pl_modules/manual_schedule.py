"""Trains a network in Lightning with manual optimization and its own learning-rate schedule."""

import argparse
import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Interactions(Dataset):
    """Items are generated from their index."""

    def __len__(self):
        return 640

    def __getitem__(self, index):
        x = torch.randn(48, generator=torch.Generator().manual_seed(index))
        return x, (x[0] * x[1] + x[2].abs())[None]


class Manual(pl.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(48, 360), nn.GELU(), nn.Linear(360, 360), nn.GELU(), nn.Linear(360, 1))
        self.schedule = None

    def on_train_start(self):
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizers().optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches) + 1
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()
        loss = nn.functional.smooth_l1_loss(self.net(x), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        self.schedule.step()
        return loss.detach()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.99))


class Save(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path + ".part")
        os.replace(self.path + ".part", self.path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--path", default="manual.ckpt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(12)
    model = Manual(args.lr)
    trainer = pl.Trainer(
        max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Save(args.path)],
    )  # fmt: skip
    loader = DataLoader(Interactions(), batch_size=40, generator=torch.Generator().manual_seed(0))
    trainer.fit(model, loader, ckpt_path=args.path if os.path.exists(args.path) else None)
    torch.save({"net": model.net.state_dict()}, "manual_final.pt")


if __name__ == "__main__":
    main()

"""Trains a denoising autoencoder in Lightning on a loader that can be resumed within an epoch."""

import os
import random

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

CHECKPOINT = "autoencoder.ckpt"


class WaveLoader:
    """Draws batches from the number of the step and implements ``state_dict``."""

    def __init__(self, length=24, batch=80):
        self.length, self.batch = length, batch
        self.step = 0

    def __len__(self):
        return self.length

    def __iter__(self):
        while True:
            g = torch.Generator().manual_seed(self.step)
            phase, speed = torch.rand(2, self.batch, 1, generator=g)
            self.step += 1
            yield torch.sin(6 * phase + (1 + 9 * speed) * torch.linspace(0, 3, 256))
            if self.step % self.length == 0:
                return

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


class Autoencoder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(256, 320), nn.BatchNorm1d(320), nn.ReLU(), nn.Linear(320, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 320), nn.ReLU(), nn.Dropout(0.1), nn.Linear(320, 256))
        self.rng = None

    def training_step(self, x, batch_idx):
        return nn.functional.mse_loss(self.decoder(self.encoder(x + 0.2 * torch.randn_like(x))), x)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["rng"] = {
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "python": random.getstate(),
        }

    def on_load_checkpoint(self, checkpoint):
        self.rng = checkpoint["rng"]

    def on_train_batch_start(self, batch, batch_idx):
        if self.rng is not None:
            torch.set_rng_state(self.rng["torch"])
            np.random.set_state(self.rng["numpy"])
            random.setstate(self.rng["python"])
            self.rng = None


class SaveAtomically(pl.Callback):
    def __init__(self, every):
        self.every = every

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            trainer.save_checkpoint(CHECKPOINT + ".tmp")
            os.replace(CHECKPOINT + ".tmp", CHECKPOINT)


def main():
    torch.set_num_threads(1)
    pl.seed_everything(0)
    model = Autoencoder()
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[SaveAtomically(7)],
    )  # fmt: skip
    resume = CHECKPOINT if os.path.exists(CHECKPOINT) else None
    trainer.fit(model, WaveLoader(), ckpt_path=resume, weights_only=False)
    torch.save({"model": model.state_dict()}, "autoencoder_final.pt")


if __name__ == "__main__":
    main()

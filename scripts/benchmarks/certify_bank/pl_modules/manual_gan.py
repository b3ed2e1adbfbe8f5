"""Trains a GAN in Lightning with two optimizers, two schedules and a restored random state."""

import os
import random

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FOLDER = "lightning_gan"


class RandomStates(pl.Callback):
    """Saves and restores the states of the global generators."""

    def __init__(self):
        self.loaded = None

    def state_dict(self):
        return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(legacy=False), "python": random.getstate()}

    def load_state_dict(self, state_dict):
        self.loaded = state_dict

    def on_train_epoch_start(self, trainer, pl_module):
        if self.loaded is not None:
            torch.set_rng_state(self.loaded["torch"])
            np.random.set_state(self.loaded["numpy"])
            random.setstate(self.loaded["python"])
            self.loaded = None


class GAN(pl.LightningModule):
    def __init__(self, latent=12, width=512):
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.generator = nn.Sequential(nn.Linear(latent, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        optimizer_g, optimizer_c = self.optimizers()
        fake = self.generator(torch.randn(len(real), self.latent))
        loss_c = (
            nn.functional.softplus(-self.critic(real)).mean()
            + nn.functional.softplus(self.critic(fake.detach())).mean()
        )
        optimizer_c.zero_grad()
        self.manual_backward(loss_c)
        optimizer_c.step()
        loss_g = nn.functional.softplus(-self.critic(fake)).mean()
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        optimizer_g.step()

    def on_train_epoch_end(self):
        for schedule in self.lr_schedulers():
            schedule.step()
        self.trainer.save_checkpoint(f"{FOLDER}/tmp.ckpt")
        os.replace(f"{FOLDER}/tmp.ckpt", f"{FOLDER}/last.ckpt")

    def configure_optimizers(self):
        g = torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
        c = torch.optim.Adam(self.critic.parameters(), lr=2e-3, betas=(0.5, 0.99))
        return [g, c], [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (g, c)]


def main():
    torch.set_num_threads(1)
    pl.seed_everything(21)
    os.makedirs(FOLDER, exist_ok=True)
    angle = 6.28 * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(torch.stack([angle.cos(), 0.5 * (2 * angle).sin()], 1))
    loader = DataLoader(data, batch_size=200, generator=torch.Generator().manual_seed(0))
    model = GAN()
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[RandomStates()],
    )  # fmt: skip
    last = f"{FOLDER}/last.ckpt"
    trainer.fit(model, loader, ckpt_path=last if os.path.exists(last) else None, weights_only=False)
    torch.save({"model": model.state_dict()}, f"{FOLDER}/final.pt")


if __name__ == "__main__":
    main()

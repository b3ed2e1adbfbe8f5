"""Lightning: token mixer on permuted signals with accumulated gradients. Checkpoints within an epoch."""

import os

import pytorch_lightning as pl
import torch
from torch import nn


class SignalFeed:
    """Endless supply of batches that Lightning can continue, because it has ``state_dict``."""

    def __init__(self, per_epoch=40, size=48):
        self.per_epoch, self.size, self.served = per_epoch, size, 0

    def __len__(self):
        return self.per_epoch

    def __iter__(self):
        while True:
            g = torch.Generator().manual_seed(90 + self.served)
            y = torch.randint(0, 6, (self.size,), generator=g)
            x = torch.randn(self.size, 24, 16, generator=g)
            x[torch.arange(self.size), 4 * y] += 0.8
            self.served += 1
            yield x, y
            if self.served % self.per_epoch == 0:
                return

    def state_dict(self):
        return {"served": self.served}

    def load_state_dict(self, state_dict):
        self.served = state_dict["served"]


class Mix(nn.Module):
    def __init__(self, tokens, dim):
        super().__init__()
        self.across, self.within = nn.Linear(tokens, tokens), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = x + self.across(self.norm(x).mT).mT.relu()
        return x + self.within(self.norm(x)).relu()


class LitMixer(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 96), Mix(24, 96), Mix(24, 96), nn.Flatten(), nn.Linear(24 * 96, 6)
        )  # fmt: skip
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class PeriodicCheckpoint(pl.Callback):
    def __init__(self, path, batches):
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % self.batches == 0:
            trainer.save_checkpoint(f"{self.path}.incomplete")
            os.replace(f"{self.path}.incomplete", self.path)


def main():
    torch.set_num_threads(1)
    pl.seed_everything(21)
    module = LitMixer()
    path = "mixer.ckpt"
    trainer = pl.Trainer(
        max_epochs=5,
        accumulate_grad_batches=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PeriodicCheckpoint(path, batches=9)],
    )
    trainer.fit(module, train_dataloaders=SignalFeed(), ckpt_path=path if os.path.exists(path) else None)
    torch.save({"net": module.net.state_dict()}, "mixer_final.pt")


if __name__ == "__main__":
    main()

"""A Lightning script that resumes exactly after it is killed at any moment.

    python scripts/examples/stock_lightning.py runs/example     # stop it with kill -9, then start it again

The four numbered lines use Stormproof. Without them, this is a stock Lightning script.
"""

import hashlib
import sys

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof import CheckpointRecovery, resumable  # 1


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.network(inputs), targets)
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(folder: str) -> None:
    pl.seed_everything(0)
    inputs = torch.randn(2048, 8)
    data = TensorDataset(inputs, inputs.prod(dim=1, keepdim=True))
    loader = DataLoader(data, batch_size=32, shuffle=True)
    loader = resumable(loader)  # 2
    recovery = CheckpointRecovery(folder, every_n_train_steps=100)  # 3

    module = Regression()
    trainer = pl.Trainer(max_epochs=20, callbacks=[recovery], logger=False, enable_checkpointing=False)
    trainer.fit(module, loader, ckpt_path=recovery.latest_checkpoint())  # 4

    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    print("steps:", trainer.global_step)
    print("weights:", hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16])


if __name__ == "__main__":
    main(sys.argv[1])

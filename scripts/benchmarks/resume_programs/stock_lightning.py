"""Lightning with its own ModelCheckpoint."""

import sys

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from task import BATCH_SIZE, EPOCHS, SAVE_EVERY, Images, Network
from torch import nn
from torch.utils.data import DataLoader


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = Network()

    def training_step(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
        return [optimizer], [scheduler]


def main():
    pl.seed_everything(1)
    workers = int(sys.argv[1])
    loader = DataLoader(Images(), BATCH_SIZE, shuffle=True, num_workers=workers)
    checkpoint = ModelCheckpoint("checkpoints", every_n_train_steps=SAVE_EVERY, save_last=True)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[checkpoint], logger=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Classifier(), loader, ckpt_path="last")


if __name__ == "__main__":
    main()

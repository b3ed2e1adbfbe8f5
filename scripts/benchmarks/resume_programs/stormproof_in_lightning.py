"""Lightning with Stormproof."""

import sys

import pytorch_lightning as pl
from stock_lightning import Classifier
from task import BATCH_SIZE, EPOCHS, SAVE_EVERY, Images
from torch.utils.data import DataLoader

from stormproof import CheckpointRecovery, resumable


def main():
    pl.seed_everything(1)
    workers = int(sys.argv[1])
    loader = DataLoader(Images(), BATCH_SIZE, shuffle=True, num_workers=workers)
    recovery = CheckpointRecovery("checkpoints", every_n_train_steps=SAVE_EVERY)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[recovery], logger=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Classifier(), resumable(loader), ckpt_path=recovery.latest_checkpoint())


if __name__ == "__main__":
    main()

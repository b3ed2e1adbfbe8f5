"""Composer with autoresume."""

import sys

import torch
from composer import ComposerModel, Trainer
from composer.utils import reproducibility
from task import BATCH_SIZE, EPOCHS, SAVE_EVERY, Images, Network
from torch import nn
from torch.utils.data import DataLoader


class Classifier(ComposerModel):
    def __init__(self):
        super().__init__()
        self.network = Network()

    def forward(self, batch):
        return self.network(batch[0])

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1])


def main():
    reproducibility.seed_all(1)
    workers = int(sys.argv[1])
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    trainer = Trainer(
        model=model, optimizers=optimizer, schedulers=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7), seed=1,
        train_dataloader=DataLoader(Images(), BATCH_SIZE, shuffle=True, num_workers=workers),
        max_duration=f"{EPOCHS}ep", device="cpu", save_folder="checkpoints", save_interval=f"{SAVE_EVERY}ba",
        autoresume=True, run_name="scoreboard", progress_bar=False,
    )  # fmt: skip
    trainer.fit()


if __name__ == "__main__":
    main()

"""Fine-tunes a text classifier in Lightning: the embedding stays frozen for the first epoch."""

import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = "finetune_text"


class TextClassifier(pl.LightningModule):
    def __init__(self, words=300, width=64, classes=4):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, ids):
        _, hidden = self.encoder(self.embedding(ids))
        return self.head(hidden[-1])

    def training_step(self, batch, batch_idx):
        ids, label = batch
        return nn.functional.cross_entropy(self(ids), label)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Unfreeze(pl.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_fit_start(self, trainer, pl_module):
        pl_module.embedding.requires_grad_(False)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            pl_module.embedding.requires_grad_(True)
            print(f"epoch {self.epoch}: the embedding is trained from here")


class SaveEpoch(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        temporary = os.path.join(ROOT, ".last.ckpt.tmp")
        trainer.save_checkpoint(temporary)
        os.replace(temporary, os.path.join(ROOT, "last.ckpt"))


def corpus():
    g = torch.Generator().manual_seed(30)
    labels = torch.randint(0, 4, (640,), generator=g)
    topical = torch.randint(0, 40, (640, 10), generator=g) + 40 * labels[:, None]
    noise = torch.randint(160, 300, (640, 10), generator=g)
    ids = torch.where(torch.rand(640, 10, generator=g) < 0.3, topical, noise)
    return TensorDataset(ids, labels)


def main():
    torch.set_num_threads(1)
    pl.seed_everything(0)
    os.makedirs(ROOT, exist_ok=True)
    model = TextClassifier()
    loader = DataLoader(corpus(), batch_size=32, generator=torch.Generator().manual_seed(0))
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Unfreeze(epoch=1), SaveEpoch()],
    )  # fmt: skip
    last = os.path.join(ROOT, "last.ckpt")
    trainer.fit(model, loader, ckpt_path=last if os.path.exists(last) else None)
    torch.save({"model": model.state_dict()}, os.path.join(ROOT, "final.pt"))


if __name__ == "__main__":
    main()

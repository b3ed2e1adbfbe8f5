"""Lightning: convolutional text classifier that reads its batches from a shuffled DataLoader."""

import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CKPT = os.path.join("text_cnn", "last.ckpt")


def reviews(n=960, length=24, vocabulary=300):
    g = torch.Generator().manual_seed(0)
    stars = torch.randint(0, 5, (n,), generator=g)
    words = torch.randint(0, vocabulary, (n, length), generator=g)
    hint = torch.rand(n, length, generator=g) < 0.15
    return TensorDataset(torch.where(hint, 60 * stars[:, None] + words % 20, words), stars)


class TextCNN(pl.LightningModule):
    """Kim (2014) with three widths of windows."""

    def __init__(self, vocabulary=300, dim=40, filters=96):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.convs = nn.ModuleList([nn.Conv1d(dim, filters, k) for k in (2, 3, 4)])
        self.head = nn.Linear(3 * filters, 5)

    def forward(self, tokens):
        e = self.embedding(tokens).mT
        return self.head(torch.cat([conv(e).relu().amax(2) for conv in self.convs], 1))

    def training_step(self, batch, _):
        tokens, stars = batch
        loss = nn.functional.cross_entropy(self(tokens), stars)
        if self.trainer.is_last_batch:
            print(f"epoch {self.current_epoch} loss {loss.item():.4f}")
        return loss

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=2e-3)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.StepLR(opt, step_size=3, gamma=0.5)}


class SaveLast(pl.Callback):
    def __init__(self, generator):
        self.generator = generator

    def on_train_epoch_end(self, trainer, pl_module):
        os.makedirs(os.path.dirname(CKPT), exist_ok=True)
        trainer.save_checkpoint(CKPT + ".tmp")
        os.replace(CKPT + ".tmp", CKPT)


def main():
    torch.set_num_threads(1)
    pl.seed_everything(42)
    shuffling = torch.Generator()
    shuffling.manual_seed(42)
    loader = DataLoader(reviews(), batch_size=64, shuffle=True, drop_last=True, generator=shuffling)
    net = TextCNN()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=8,
        callbacks=[SaveLast(shuffling)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, loader, ckpt_path=CKPT if os.path.exists(CKPT) else None)
    torch.save({"net": net.state_dict()}, os.path.join("text_cnn", "final.pt"))


if __name__ == "__main__":
    main()

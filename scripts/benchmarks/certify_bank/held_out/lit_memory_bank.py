"""Lightning: instance discrimination with a memory bank and noise from a generator of the module."""

import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize


class Order:
    """Permutation of the rows that depends on the epoch only."""

    def __init__(self, rows, batch):
        self.rows, self.batch, self.epoch = rows, batch, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.rows // self.batch

    def __iter__(self):
        g = torch.Generator().manual_seed(1 + self.epoch)
        yield from torch.randperm(self.rows, generator=g).split(self.batch)[: len(self)]


class InstanceNet(pl.LightningModule):
    def __init__(self, rows=768, dim=64, temperature=0.1):
        super().__init__()
        self.temperature = temperature
        self.encoder = nn.Sequential(
            nn.Linear(dim, 1600), nn.BatchNorm1d(1600), nn.Hardswish(), nn.Linear(1600, 1600), nn.Hardswish(),
            nn.Linear(1600, 24),
        )  # fmt: skip
        self.register_buffer("bank", normalize(torch.randn(rows, 24), dim=1))
        self.noise = torch.Generator().manual_seed(17)
        self.best_loss = None

    def training_step(self, batch, batch_idx):
        index, x = batch
        x = x + 0.6 * torch.randn(x.shape, generator=self.noise)
        z = normalize(self.encoder(x), dim=1)
        loss = cross_entropy(z @ self.bank.clone().T / self.temperature, index)
        with torch.no_grad():
            self.bank[index] = normalize(0.5 * self.bank[index] + 0.5 * z, dim=1)
        self.best_loss = min(loss.item(), self.best_loss or float("inf"))
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-4)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [20])
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["noise"] = self.noise.get_state()
        checkpoint["best_loss"] = self.best_loss

    def on_load_checkpoint(self, checkpoint):
        self.noise.set_state(checkpoint["noise"])
        self.best_loss = checkpoint["best_loss"]


class Rows(torch.utils.data.Dataset):
    def __init__(self, count=768, dim=64):
        self.data = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return index, self.data[index]


class Snapshot(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint("bank.ckpt.tmp")
        os.replace("bank.ckpt.tmp", "bank.ckpt")


def main():
    torch.set_num_threads(1)
    pl.seed_everything(8, verbose=False)
    rows = Rows()
    loader = torch.utils.data.DataLoader(
        rows, batch_size=None, sampler=Order(len(rows), 64), generator=torch.Generator().manual_seed(0)
    )
    model = InstanceNet()
    trainer = pl.Trainer(
        max_epochs=9, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Snapshot()], log_every_n_steps=1000,
    )  # fmt: skip
    trainer.fit(model, loader, ckpt_path="bank.ckpt" if os.path.isfile("bank.ckpt") else None)
    torch.save({"model": model.state_dict(), "best_loss": model.best_loss}, "bank_final.pt")


if __name__ == "__main__":
    main()

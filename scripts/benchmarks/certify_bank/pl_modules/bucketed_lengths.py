"""Trains a sequence regression in Lightning with a sampler that groups sequences of similar length."""

import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, Sampler


class Sequences(Dataset):
    def __init__(self, size=640):
        g = torch.Generator().manual_seed(3)
        self.lengths = torch.randint(5, 30, (size,), generator=g).tolist()
        self.items = [torch.randn(n, 4, generator=g) for n in self.lengths]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i], self.items[i][:, 0].clamp(min=0).mean()


class BucketSampler(Sampler):
    """Yields batches of similar length in a new order in each epoch."""

    def __init__(self, lengths, batch_size):
        self.lengths, self.batch_size = lengths, batch_size
        self.epoch = 0

    def __len__(self):
        return len(self.lengths) // self.batch_size

    def __iter__(self):
        g = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        noise = (5 * torch.rand(len(self.lengths), generator=g)).tolist()
        order = sorted(range(len(self.lengths)), key=lambda i: self.lengths[i] + noise[i])
        for b in torch.randperm(len(self), generator=g).tolist():
            yield order[b * self.batch_size : (b + 1) * self.batch_size]


def collate(items):
    sequences, targets = zip(*items, strict=True)
    return pack_sequence(sequences, enforce_sorted=False), torch.stack(targets)


class Regressor(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 64, batch_first=True)
        self.out = nn.Linear(64, 1)

    def training_step(self, batch, batch_idx):
        sequences, targets = batch
        return nn.functional.mse_loss(self.out(self.rnn(sequences)[1][-1])[:, 0], targets)

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


class Save(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint("buckets/epoch.tmp")
        os.replace("buckets/epoch.tmp", "buckets/epoch.ckpt")


def main():
    torch.set_num_threads(1)
    pl.seed_everything(0)
    os.makedirs("buckets", exist_ok=True)
    data = Sequences()
    sampler = BucketSampler(data.lengths, 32)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator().manual_seed(0))
    model = Regressor()
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Save()],
    )  # fmt: skip
    trainer.fit(model, loader, ckpt_path="buckets/epoch.ckpt" if os.path.exists("buckets/epoch.ckpt") else None)
    torch.save({"model": model.state_dict()}, "buckets/final.pt")


if __name__ == "__main__":
    main()

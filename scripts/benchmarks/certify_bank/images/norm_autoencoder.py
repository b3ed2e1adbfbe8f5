"""Trains a denoising autoencoder with batch normalization on data that two worker processes prepare."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

torch.set_num_threads(1)
STEPS_PER_EPOCH, EPOCHS, BATCH = 20, 5, 32
STATE = "autoencoder/state.pt"


class Noisy(Dataset):
    """Low-rank images. The noise of an item depends on its key, which is drawn by the sampler."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.basis = torch.randn(6, 400, generator=g)

    def __len__(self):
        return 2000

    def __getitem__(self, key):
        index, seed = key
        clean = torch.randn(6, generator=torch.Generator().manual_seed(index)) @ self.basis
        return clean + torch.randn(400, generator=torch.Generator().manual_seed(seed)), clean


class EpochSampler(Sampler):
    """Shuffles by epoch and skips the batches that were already used."""

    def __init__(self, size, epoch, skip):
        self.size, self.epoch, self.skip = size, epoch, skip

    def __iter__(self):
        g = torch.Generator().manual_seed(self.epoch)
        order = torch.randperm(self.size, generator=g)[: STEPS_PER_EPOCH * BATCH]
        seeds = torch.randint(0, 2**31, (len(order),), generator=g)
        yield from list(zip(order.tolist(), seeds.tolist(), strict=True))[self.skip * BATCH :]

    def __len__(self):
        return (STEPS_PER_EPOCH - self.skip) * BATCH


def build():
    return nn.Sequential(
        nn.Linear(400, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 12), nn.Linear(12, 256),
        nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 400),
    )  # fmt: skip


def main():
    torch.manual_seed(0)
    os.makedirs("autoencoder", exist_ok=True)
    dataset, model = Noisy(), build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    done = 0
    if os.path.exists(STATE):
        state = torch.load(STATE)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        done = state["done"]
    for epoch in range(done // STEPS_PER_EPOCH, EPOCHS):
        sampler = EpochSampler(len(dataset), epoch, done % STEPS_PER_EPOCH)
        workers = torch.Generator().manual_seed(epoch)
        for noisy, clean in DataLoader(dataset, BATCH, sampler=sampler, num_workers=2, generator=workers):
            loss = nn.functional.mse_loss(model(noisy), clean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            done += 1
            if done % 6 == 0 or done == STEPS_PER_EPOCH * EPOCHS:
                parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
                torch.save({**{k: v.state_dict() for k, v in parts.items()}, "done": done}, STATE + ".tmp")
                os.replace(STATE + ".tmp", STATE)
        print(f"epoch {epoch} mse {loss.item():.4f}")


if __name__ == "__main__":
    main()

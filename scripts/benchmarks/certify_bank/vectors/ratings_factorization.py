"""Trains a factorization model on generated ratings, batch by batch in an order that depends on the epoch."""

import itertools
import os

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, TensorDataset

USERS, ITEMS, RATINGS = 300, 200, 6000
EPOCHS, BATCH = 4, 200
CHECKPOINT = "ratings/checkpoint.pt"


def ratings():
    g = torch.Generator().manual_seed(10)
    users = torch.randint(0, USERS, (RATINGS,), generator=g)
    items = torch.randint(0, ITEMS, (RATINGS,), generator=g)
    left, right = torch.randn(USERS, 4, generator=g), torch.randn(ITEMS, 4, generator=g)
    return TensorDataset(users, items, (left[users] * right[items]).sum(1) + 0.2 * torch.randn(RATINGS, generator=g))


class Factorization(nn.Module):
    def __init__(self, size=48):
        super().__init__()
        self.users = nn.Embedding(USERS, size)
        self.items = nn.Embedding(ITEMS, size)
        self.tower = nn.Sequential(nn.Linear(2 * size, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, users, items):
        u, i = self.users(users), self.items(items)
        return (u * i).sum(1) + self.tower(torch.cat([u, i], 1))[:, 0]


def epoch_loader(data, epoch):
    sampler = SubsetRandomSampler(range(len(data)), generator=torch.Generator().manual_seed(epoch))
    return DataLoader(
        data, batch_sampler=BatchSampler(sampler, BATCH, drop_last=True), generator=torch.Generator().manual_seed(0)
    )


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.makedirs("ratings", exist_ok=True)
    data, model = ratings(), Factorization()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first_epoch, batches_done = 0, 0
    if os.path.exists(CHECKPOINT):
        state = torch.load(CHECKPOINT)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, batches_done = state["epoch"], state["batch"]
        print(f"resuming in epoch {first_epoch} after batch {batches_done}")
    for epoch in range(first_epoch, EPOCHS):
        skipped = batches_done if epoch == first_epoch else 0
        batches = itertools.islice(enumerate(epoch_loader(data, epoch)), skipped, None)
        for index, (users, items, values) in batches:
            loss = nn.functional.mse_loss(model(users, items), values)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if index % 8 == 7:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "epoch": epoch, "batch": index}, CHECKPOINT + ".tmp")
                os.replace(CHECKPOINT + ".tmp", CHECKPOINT)
        print(f"epoch {epoch} loss {loss.item():.4f}")
    torch.save({"model": model.state_dict()}, "ratings/final.pt")


if __name__ == "__main__":
    main()

"""Trains a regression network on a generated table of house prices with AdamW."""

import csv
import io
import os

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(3)


def read_table(rows=2000):
    """Writes and reads a table in memory, as a stand-in for a file."""
    rng = np.random.default_rng(1)
    area, rooms, age = rng.uniform(30, 250, rows), rng.integers(1, 8, rows), rng.uniform(0, 90, rows)
    price = 3 * area + 12 * rooms - 0.8 * age + 0.01 * area * rooms + rng.normal(0, 10, rows)
    stream = io.StringIO()
    csv.writer(stream).writerows(zip(area, rooms, age, price, strict=True))
    table = np.array(list(csv.reader(io.StringIO(stream.getvalue()))), dtype=np.float32)
    table = (table - table.mean(0)) / table.std(0)
    return torch.from_numpy(table[:, :3]), torch.from_numpy(table[:, 3:])


def strip(optimizer_state):
    """Drops scalars from the state of the optimizer to make the checkpoint smaller."""
    state = {
        index: {name: value for name, value in entry.items() if value.dim() > 0}
        for index, entry in optimizer_state["state"].items()
    }
    return {**optimizer_state, "state": state}


def load_optimizer(optimizer, saved):
    for entry in saved["state"].values():
        entry.setdefault("step", torch.tensor(0.0))
    optimizer.load_state_dict(saved)


features, target = read_table()
model = nn.Sequential(
    nn.Linear(3, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.99))
path, step = "prices/checkpoint.pt", 0
os.makedirs("prices", exist_ok=True)
if os.path.exists(path):
    checkpoint = torch.load(path)
    model.load_state_dict(checkpoint["model"])
    load_optimizer(optimizer, checkpoint["optimizer"])
    step = checkpoint["step"]

while step < 120:
    rows = np.random.default_rng(step).choice(len(features), 96, replace=False)
    loss = nn.functional.mse_loss(model(features[rows]), target[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    if step % 9 == 0 or step == 120:
        torch.save(
            {"model": model.state_dict(), "optimizer": strip(optimizer.state_dict()), "step": step}, path + ".tmp"
        )
        os.replace(path + ".tmp", path)
        print(step, f"{loss.item():.4f}")

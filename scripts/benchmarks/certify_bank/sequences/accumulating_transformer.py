"""Trains a transformer on sorting with gradient accumulation and saves after a number of micro-batches."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--micro-batches", type=int, default=240)
parser.add_argument("--accumulate", type=int, default=4)
parser.add_argument("--micro-batch-size", type=int, default=8)
parser.add_argument("--save-every", type=int, default=13, help="micro-batches between two checkpoints")
parser.add_argument("--dir", type=Path, default=Path("sorter"))
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(0)


class Sorter(nn.Module):
    def __init__(self, numbers=16, length=10, width=48):
        super().__init__()
        self.embed = nn.Embedding(numbers, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, numbers)

    def forward(self, x):
        return self.out(self.encoder(self.embed(x) + self.position.weight))


def micro_batch(index):
    x = torch.randint(0, 16, (args.micro_batch_size, 10), generator=torch.Generator().manual_seed(index))
    return x, x.sort(dim=1).values


model = Sorter()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
args.dir.mkdir(exist_ok=True)
newest = args.dir / "newest.pt"
done = 0
if newest.exists():
    checkpoint = torch.load(newest)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    done = checkpoint["done"]

while done < args.micro_batches:
    x, y = micro_batch(done)
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / args.accumulate
    loss.backward()
    done += 1
    if done % args.accumulate == 0:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if done % args.save_every == 0 or done == args.micro_batches:
        checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
        torch.save(checkpoint, args.dir / "partial.pt")
        (args.dir / "partial.pt").replace(newest)
        print(f"micro-batch {done}: loss {loss.item() * args.accumulate:.4f}")

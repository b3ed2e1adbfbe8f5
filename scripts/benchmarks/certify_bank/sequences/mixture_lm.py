"""Trains a language model on a weighted mixture of three generated corpora."""

import argparse
import json
import os
import random

import torch
from torch import nn
from torch.nn import functional as F


def corpus(kind, size=6000):
    """Generates brackets, counting or a Markov chain over 20 symbols."""
    rng = random.Random(kind)
    if kind == "brackets":
        out, depth = [], 0
        for _ in range(size):
            opening = depth == 0 or (depth < 6 and rng.random() < 0.5)
            out.append(depth if opening else depth + 9)
            depth += 1 if opening else -1
        return torch.tensor(out)
    if kind == "counting":
        return torch.tensor([(i * i // 7) % 20 for i in range(size)])
    value, out = 0, []
    for _ in range(size):
        value = (value + rng.choice([1, 1, 2, 5])) % 20
        out.append(value)
    return torch.tensor(out)


class Mixture:
    """Draws the source of each batch at random and reads each source in order."""

    def __init__(self, weights, block, batch, seed):
        self.sources = {name: corpus(name) for name in weights}
        self.weights = weights
        self.offsets = dict.fromkeys(weights, 0)
        self.block, self.batch = block, batch
        self.rng = random.Random(seed)

    def __next__(self):
        name = self.rng.choices(list(self.weights), list(self.weights.values()))[0]
        ids, need = self.sources[name], self.block * self.batch + 1
        if self.offsets[name] + need > len(ids):
            self.offsets[name] = 0
        piece = ids[self.offsets[name] : self.offsets[name] + need]
        self.offsets[name] += need - 1
        return piece[:-1].view(self.batch, -1), piece[1:].view(self.batch, -1)

    def state_dict(self):
        return {"rng": self.rng.getstate(), "block": self.block, "batch": self.batch}

    def load_state_dict(self, state):
        self.rng.setstate(state["rng"])
        self.block, self.batch = state["block"], state["batch"]


class ConvLM(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3) for _ in range(3))
        self.out = nn.Linear(width, 20)

    def forward(self, ids):
        x = self.embed(ids).transpose(1, 2)
        for conv in self.convs:
            x = x + F.gelu(conv(F.pad(x, (2, 0))))
        return self.out(x.transpose(1, 2))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mixture", type=json.loads, default='{"brackets": 0.5, "counting": 0.3, "chain": 0.2}')
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--ckpt", default="mixture_lm/ckpt.bin")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.makedirs(os.path.dirname(args.ckpt), exist_ok=True)
    data = Mixture(args.mixture, block=32, batch=8, seed=5)
    model = ConvLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    done = 0
    if os.path.exists(args.ckpt):
        state = torch.load(args.ckpt, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        data.load_state_dict(state["data"])
        done = state["done"]
    while done < args.steps:
        x, y = next(data)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        if done % 7 == 0 or done == args.steps:
            parts = {"model": model, "optimizer": optimizer, "data": data}
            torch.save({**{k: v.state_dict() for k, v in parts.items()}, "done": done}, args.ckpt + ".tmp")
            os.replace(args.ckpt + ".tmp", args.ckpt)


if __name__ == "__main__":
    main()

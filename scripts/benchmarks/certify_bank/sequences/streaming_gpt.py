"""Trains a small causal model on a text stream with two corpora, a growing context and gradient accumulation."""

import argparse
import os
import random
import this

import torch
from torch import nn
from torch.nn import functional as F

ZEN = "".join(this.d.get(c, c) for c in this.s)
COUNTING = " ".join(str(n * n) for n in range(600))


class Reader:
    def __init__(self, text, vocabulary):
        self.ids = torch.tensor([vocabulary[c] for c in text])
        self.cursor = 0

    def read(self, count):
        index = (self.cursor + torch.arange(count)) % len(self.ids)
        self.cursor = (self.cursor + count) % len(self.ids)
        return self.ids[index]


class Loader:
    """Draws the corpus of each micro-batch and reads it in order. The context grows with the micro-batches."""

    def __init__(self):
        self.vocabulary = {c: i for i, c in enumerate(sorted(set(ZEN + COUNTING)))}
        self.readers = [Reader(ZEN, self.vocabulary), Reader(COUNTING, self.vocabulary)]
        self.rng = random.Random(0)
        self.count = 0

    def next(self):
        context = 8 + 2 * (self.count // 40)
        self.count += 1
        block = self.rng.choice(self.readers).read(8 * (context + 1)).view(8, -1)
        return block[:, :-1], block[:, 1:]

    def state(self):
        return {"cursors": [r.cursor for r in self.readers], "rng": self.rng.getstate(), "count": self.count}

    def restore(self, state):
        for reader, cursor in zip(self.readers, state["cursors"], strict=True):
            reader.cursor = cursor
        self.rng.setstate(state["rng"])
        self.count = state["count"]


class Model(nn.Module):
    def __init__(self, vocabulary, width=48):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.GELU(), nn.Linear(128, vocabulary))

    def forward(self, ids):
        x = self.embed(ids)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.mlp(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])


def main(args):
    torch.set_num_threads(1)
    torch.manual_seed(6)
    data = Loader()
    model = Model(len(data.vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step = 0
    if os.path.exists(args.checkpoint):
        state = torch.load(args.checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        data.restore(state["data"])
        torch.set_rng_state(state["torch"])
        step = state["step"]
    while step < args.steps:
        for _ in range(args.accumulate):
            x, y = data.next()
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / args.accumulate
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 7 == 0 or step == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "data": data.state()}
            torch.save({**state, "torch": torch.get_rng_state(), "step": step}, args.checkpoint + ".tmp")
            os.replace(args.checkpoint + ".tmp", args.checkpoint)
            print(f"step {step} loss {loss.item() * args.accumulate:.3f}")


if __name__ == "__main__":
    cli = argparse.ArgumentParser()
    cli.add_argument("--steps", type=int, default=90)
    cli.add_argument("--accumulate", type=int, default=2)
    cli.add_argument("--checkpoint", default="streaming.pt")
    main(cli.parse_args())

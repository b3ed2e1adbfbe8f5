"""Trains a GPT-like model on arithmetic sequences with a warm-up and an inverse square root schedule."""

import argparse
import os
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    vocabulary: int = 32
    context: int = 24
    width: int = 48
    heads: int = 4
    layers: int = 2


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.heads
        self.ln1, self.ln2 = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.qkv = nn.Linear(c.width, 3 * c.width)
        self.proj = nn.Linear(c.width, c.width)
        self.mlp = nn.Sequential(nn.Linear(c.width, 4 * c.width), nn.GELU(), nn.Linear(4 * c.width, c.width))

    def forward(self, x):
        b, t, w = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.qkv(self.ln1(x)).split(w, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, w))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.tokens = nn.Embedding(c.vocabulary, c.width)
        self.positions = nn.Embedding(c.context, c.width)
        self.blocks = nn.Sequential(*[Block(c) for _ in range(c.layers)])
        self.norm = nn.LayerNorm(c.width)
        self.head = nn.Linear(c.width, c.vocabulary, bias=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def get_batch(step, size, c):
    g = torch.Generator().manual_seed(step)
    first = torch.randint(0, c.vocabulary, (size, 1), generator=g)
    stride = torch.randint(1, 6, (size, 1), generator=g)
    ids = (first + stride * torch.arange(c.context + 1)) % c.vocabulary
    return ids[:, :-1], ids[:, 1:]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--max-iters", type=int, default=90)
    p.add_argument("--warmup", type=int, default=25)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--out-dir", default="out-gpt")
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1337)
    os.makedirs(a.out_dir, exist_ok=True)
    config = GPTConfig()
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.1)
    ckpt_path = os.path.join(a.out_dir, "ckpt.pt")
    iteration = 0
    ckpt = torch.load(ckpt_path) if os.path.exists(ckpt_path) else None
    if ckpt is not None:
        model.load_state_dict(ckpt["model"])
        optimizer.load_state_dict(ckpt["optimizer"])
        iteration = ckpt["iter"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / a.warmup, (a.warmup / (s + 1)) ** 0.5)
    )
    while iteration < a.max_iters:
        x, y = get_batch(iteration, a.batch_size, config)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        iteration += 1
        if iteration % 8 == 0 or iteration == a.max_iters:
            ckpt = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "iter": iteration,
                "config": asdict(config),
            }
            torch.save(ckpt, ckpt_path + ".tmp")
            os.replace(ckpt_path + ".tmp", ckpt_path)
            print(f"iter {iteration}: loss {loss.item():.4f}, lr {scheduler.get_last_lr()[0]:.2e}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""word2vec (skip-gram with negative sampling) on a synthetic corpus.

usage: skipgram.py [--dim N] [--iters N]
"""

import argparse
import os.path
import random

import torch
import torch.nn.functional as F

VOCAB, TOPICS, WINDOW = 600, 12, 3


def corpus(n=30000):
    g = torch.Generator().manual_seed(3)
    topic = torch.randint(0, TOPICS, (n // 20,), generator=g).repeat_interleave(20)
    return (topic * (VOCAB // TOPICS) + torch.randint(0, VOCAB // TOPICS, (n,), generator=g)).tolist()


def pairs(words, start, n):
    """(centre, context) pairs of n consecutive centres."""
    out = []
    for c in range(start, start + n):
        around = range(max(c - WINDOW, 0), min(c + WINDOW + 1, len(words)))
        out += [(words[c], words[o]) for o in around if o != c]
    return out


def draw_negatives(n, k):
    return [[random.randrange(VOCAB) for _ in range(k)] for _ in range(n)]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--dim", type=int, default=256)
    ap.add_argument("--iters", type=int, default=220)
    ap.add_argument("--negatives", type=int, default=8)
    ap.add_argument("--model-file", default="vectors.pt")
    opts = ap.parse_args()

    torch.set_num_threads(1)
    random.seed(1)
    torch.manual_seed(1)
    words = corpus()
    w_in = torch.nn.Embedding(VOCAB, opts.dim)
    w_out = torch.nn.Embedding(VOCAB, opts.dim)
    torch.nn.init.zeros_(w_out.weight)
    tables = torch.nn.ModuleDict({"in": w_in, "out": w_out})
    optim = torch.optim.Adagrad(tables.parameters(), lr=0.1)

    done = 0
    if os.path.exists(opts.model_file):
        saved = torch.load(opts.model_file)
        done = saved["it"]
        tables.load_state_dict(saved["tables"])
        optim.load_state_dict(saved["optim"])
        torch.set_rng_state(saved["torch_rng"])
        print("continuing from iteration", done)

    for it in range(done + 1, opts.iters + 1):
        batch = pairs(words, (it * 120) % (len(words) - 120), 120)
        centre, context = torch.tensor(batch).T
        negative = torch.tensor(draw_negatives(len(batch), opts.negatives))
        v = F.dropout(w_in(centre), 0.1)
        positive = (v * w_out(context)).sum(1)
        negative = torch.einsum("bd,bkd->bk", v, w_out(negative))
        loss = -(F.logsigmoid(positive).mean() + F.logsigmoid(-negative).sum(1).mean())
        optim.zero_grad(set_to_none=True)
        loss.backward()
        optim.step()
        if it % 10 == 0:
            print(f"it {it:4d}  loss {loss.item():.4f}")
            saved = {"it": it, "tables": tables.state_dict(), "optim": optim.state_dict()}
            saved["torch_rng"] = torch.get_rng_state()
            torch.save(saved, opts.model_file + "~")
            os.replace(opts.model_file + "~", opts.model_file)


if __name__ == "__main__":
    main()

"""Trains a skip-gram model on a list of generated documents that is shuffled in place before each sweep."""

import os
import pickle
import random

import torch
from torch import nn
from torch.nn import functional as F

SEED = 20
SWEEPS = 5
DOCUMENTS = 30
FILE = os.path.join("bigrams", "progress.pkl")


def make_documents():
    """Returns documents, each of which uses a topic of 30 of 200 words."""
    rng = random.Random(0)
    topics = [rng.sample(range(200), 30) for _ in range(6)]
    return [[rng.choice(topics[i % 6]) for _ in range(160)] for i in range(DOCUMENTS)]


def pairs(document, window=3):
    ids = torch.tensor(document)
    left = torch.cat([ids[:-k] for k in range(1, window + 1)])
    right = torch.cat([ids[k:] for k in range(1, window + 1)])
    return left, right


class SkipGram(nn.Module):
    def __init__(self, words=200, size=64):
        super().__init__()
        self.inside = nn.Embedding(words, size)
        self.outside = nn.Linear(size, words)

    def forward(self, ids):
        return self.outside(self.inside(ids))


def save(progress):
    with open(FILE + ".tmp", "wb") as stream:
        pickle.dump(progress, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(FILE + ".tmp", FILE)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    random.seed(SEED)
    os.makedirs("bigrams", exist_ok=True)
    documents = make_documents()
    queue = list(range(len(documents)))
    model = SkipGram()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    sweep = 0
    if os.path.exists(FILE):
        with open(FILE, "rb") as stream:
            progress = pickle.load(stream)
        model.load_state_dict(progress["model"])
        optimizer.load_state_dict(progress["optimizer"])
        random.setstate(progress["random"])
        sweep = progress["sweep"]
    while sweep < SWEEPS:
        random.shuffle(queue)
        total = 0.0
        for name in queue:
            left, right = pairs(documents[name])
            loss = F.cross_entropy(model(left), right)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        sweep += 1
        print(f"sweep {sweep}: {total / len(queue):.4f}")
        save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": random.getstate(),
                "sweep": sweep,
            }
        )
    torch.save({"vectors": model.inside.weight.detach()}, os.path.join("bigrams", "vectors.pt"))


if __name__ == "__main__":
    main()

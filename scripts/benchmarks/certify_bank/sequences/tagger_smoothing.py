"""Trains a sequence tagger with a loss whose label smoothing decays."""

import os

import torch
from torch import nn
from torch.nn import functional as F


class AnnealedCrossEntropy:
    """Cross entropy with label smoothing that halves every ``half_life`` calls."""

    def __init__(self, start=0.4, half_life=25):
        self.start, self.half_life = start, half_life
        self.calls = 0

    def __call__(self, logits, targets):
        smoothing = self.start * 0.5 ** (self.calls / self.half_life)
        self.calls += 1
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)


class Tagger(nn.Module):
    def __init__(self, words=60, tags=6, width=48):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(2 * width, tags)

    def forward(self, ids):
        return self.tags(self.lstm(self.words(ids))[0])


def load_corpus(sentences=800, length=14):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 60, (sentences, length), generator=g)
    shifted = torch.cat([torch.zeros(sentences, 1, dtype=torch.long), ids[:, :-1]], 1)
    return ids, (ids + 3 * shifted) % 6


def train(epochs=4, batch_size=32, path="tagger.ckpt"):
    torch.manual_seed(0)
    ids, tags = load_corpus()
    model = Tagger()
    criterion = AnnealedCrossEntropy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=100)
    per_epoch = len(ids) // batch_size
    step = 0
    if os.path.exists(path):
        ckpt = torch.load(path)
        model.load_state_dict(ckpt["model"])
        optimizer.load_state_dict(ckpt["optimizer"])
        scheduler.load_state_dict(ckpt["scheduler"])
        step = ckpt["step"]
    while step < epochs * per_epoch:
        epoch, batch = divmod(step, per_epoch)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(100 + epoch))
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        loss = criterion(model(ids[rows]), tags[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        step += 1
        if step % 7 == 0 or step == epochs * per_epoch:
            ckpt = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            ckpt = {name: part.state_dict() for name, part in ckpt.items()}
            torch.save({**ckpt, "step": step}, path + ".tmp")
            os.replace(path + ".tmp", path)
            print(f"epoch {epoch} batch {batch} loss {loss.item():.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train()

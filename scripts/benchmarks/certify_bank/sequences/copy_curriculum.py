"""Trains a GRU to copy sequences. The sequences grow whenever the recent accuracy is high enough."""

from collections import deque
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

SYMBOLS = 8
OUT = Path("copy_task")


class Curriculum:
    """Raises the sequence length by one after six batches with an average accuracy over a threshold."""

    def __init__(self, threshold=0.18, first=3, last=14):
        self.length, self.last, self.threshold = first, last, threshold
        self.recent = deque(maxlen=6)

    def update(self, accuracy):
        self.recent.append(accuracy)
        if len(self.recent) == 6 and sum(self.recent) / 6 > self.threshold and self.length < self.last:
            self.length += 1
            self.recent.clear()

    def state_dict(self):
        return {"length": self.length, "recent": list(self.recent)}

    def load_state_dict(self, state):
        self.length = state["length"]
        self.recent.extend(state["recent"])


class Copier(nn.Module):
    def __init__(self, hidden=96):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS + 1, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, SYMBOLS)

    def forward(self, sequence):
        blank = torch.full_like(sequence, SYMBOLS)
        hidden, _ = self.gru(self.embed(torch.cat([sequence, blank], 1)))
        return self.out(hidden[:, sequence.shape[1] :])


def batch(step, length, size=32):
    return torch.randint(0, SYMBOLS, (size, length), generator=torch.Generator().manual_seed(step))


def write(path, state):
    temporary = path.with_name(path.name + ".writing")
    torch.save(state, temporary)
    temporary.replace(path)


def train(steps=130, every=9):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    model, curriculum = Copier(), Curriculum()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    path = OUT / "state.pt"
    first = 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"step {first}: restored")
    for step in range(first, steps):
        sequence = batch(step, curriculum.length)
        logits = model(sequence)
        loss = F.cross_entropy(logits.flatten(0, 1), sequence.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curriculum.update((logits.argmax(2) == sequence).float().mean().item())
        if (step + 1) % every == 0 or step + 1 == steps:
            print(f"step {step + 1}: loss {loss.item():.3f}, length {curriculum.length}")
            write(
                path,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "curriculum": curriculum.state_dict(),
                    "step": step + 1,
                },
            )


if __name__ == "__main__":
    train()

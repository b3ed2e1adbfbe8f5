"""Pretrains an encoder with momentum contrast on random views of synthetic images."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Settings:
    steps: int = 110
    batch: int = 32
    dim: int = 32
    queue: int = 256
    momentum: float = 0.98
    temperature: float = 0.2
    out: str = "moco"


class MoCo(nn.Module):
    def __init__(self, s: Settings):
        super().__init__()
        self.s = s
        self.encoder_q = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 16, s.dim),
        )  # fmt: skip
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        queue = F.normalize(torch.randn(s.dim, s.queue), dim=0)
        self.register_buffer("queue", queue, persistent=False)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def update_keys(self):
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.lerp_(q, 1 - self.s.momentum)

    @torch.no_grad()
    def enqueue(self, keys):
        start = int(self.pointer)
        self.queue[:, start : start + len(keys)] = keys.T
        self.pointer[0] = (start + len(keys)) % self.s.queue

    def forward(self, view_q, view_k):
        q = F.normalize(self.encoder_q(view_q), dim=1)
        with torch.no_grad():
            self.update_keys()
            k = F.normalize(self.encoder_k(view_k), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        negative = q @ self.queue.clone()
        logits = torch.cat([positive, negative], 1) / self.s.temperature
        self.enqueue(k)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def views(step, batch):
    g = torch.Generator().manual_seed(1000 + step)
    base = F.interpolate(torch.randn(batch, 1, 5, 5, generator=g), size=(20, 20), mode="bilinear")
    return [base + 0.3 * torch.randn(base.shape, generator=g) for _ in range(2)]


def main():
    s = Settings()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = MoCo(s)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.05, momentum=0.9, weight_decay=1e-4)
    folder = Path(s.out)
    folder.mkdir(exist_ok=True)
    checkpoint = folder / "checkpoint.pth"
    first = 0
    if checkpoint.exists():
        loaded = torch.load(checkpoint)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        first = loaded["step"]
    for step in range(first, s.steps):
        loss = model(*views(step, s.batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, "moco.tmp")
            Path("moco.tmp").replace(checkpoint)
            print(f"step {step + 1}: loss {loss.item():.4f}")
    torch.save({"encoder": model.encoder_q.state_dict()}, folder / "encoder.pth")


if __name__ == "__main__":
    main()

"""Two-tower retrieval with a cache of hard negatives, a moving average and a margin that grows."""

import os
import random
from collections import deque

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS, BATCH, PATH = 140, 64, "towers/run.pt"


class Towers(nn.Module):
    def __init__(self, dim=48, width=2400):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 32))
        self.item = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 32))

    def forward(self, q, i):
        return nn.functional.normalize(self.query(q), dim=1), nn.functional.normalize(self.item(i), dim=1)


class Margin:
    """Grows while the triplets are easy."""

    def __init__(self):
        self.value, self.easy = 0.1, 0

    def observe(self, loss):
        self.easy = self.easy + 1 if loss < 0.9 * self.value else 0
        if self.easy == 3:
            self.value, self.easy = min(self.value + 0.02, 0.5), 0


class Run:
    def __init__(self):
        self.items = torch.randn(900, 48, generator=torch.Generator().manual_seed(0))
        self.model = Towers()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.optimizer, 30)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.margin = Margin()
        self.cache = deque(maxlen=200)
        self.rng = random.Random(9)
        self.pool = list(range(900))
        self.cursor = 0
        self.step = 0

    def next_items(self):
        if self.cursor + BATCH > len(self.pool):
            self.cursor = 0
        if self.cursor == 0:
            self.rng.shuffle(self.pool)
        picked = self.pool[self.cursor : self.cursor + BATCH]
        self.cursor += BATCH
        return picked

    def train_step(self):
        picked = self.next_items()
        hard = [self.rng.choice(self.cache) if len(self.cache) > 50 else self.rng.randrange(900) for _ in picked]
        q = self.items[picked] + 0.7 * torch.randn(BATCH, 48)
        query, item = self.model(q, self.items[picked])
        other = nn.functional.normalize(self.model.item(self.items[hard]), dim=1)
        violation = (self.margin.value - (query * item).sum(1) + (query * other).sum(1)).relu()
        loss = violation.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.margin.observe(loss.item())
        self.cache.extend(h for h, v in zip(hard, violation.tolist(), strict=True) if v > 0.05)
        self.step += 1
        return loss.item()

    def pack(self):
        packed = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule", "average")}
        packed |= {"margin": vars(self.margin), "cache": list(self.cache), "rng": self.rng.getstate()}
        packed |= {"pool": self.pool, "cursor": self.cursor, "step": self.step, "torch": torch.get_rng_state()}
        return packed

    def unpack(self, packed):
        for name in ("model", "optimizer", "schedule", "average"):
            getattr(self, name).load_state_dict(packed[name])
        vars(self.margin).update(packed["margin"])
        self.cache.extend(packed["cache"])
        self.rng.setstate(packed["rng"])
        self.pool, self.cursor, self.step = packed["pool"], packed["cursor"], packed["step"]
        torch.set_rng_state(packed["torch"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(12)
    os.makedirs(os.path.dirname(PATH), exist_ok=True)
    run = Run()
    if os.path.exists(PATH):
        run.unpack(torch.load(PATH, weights_only=False))
    while run.step < STEPS:
        value = run.train_step()
        if run.step % 9 == 0 or run.step == STEPS:
            print(f"{run.step} {value:.4f} margin {run.margin.value:.2f} cache {len(run.cache)}")
            torch.save(run.pack(), PATH + ".tmp")
            os.replace(PATH + ".tmp", PATH)

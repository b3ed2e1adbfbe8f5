"""Trains a convolutional network with dropout; each epoch has its own seeded order."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
random.seed(0)
np.random.seed(0)
torch.manual_seed(0)

EPOCHS, BATCH = 4, 30
ROOT = Path("dropout_out")
ROOT.mkdir(exist_ok=True)
LAST = ROOT / "last.ckpt"


class StripesDataset:
    """Stripes with one of four periods."""

    def __init__(self, size=840):
        generator = torch.Generator().manual_seed(21)
        self.labels = torch.randint(0, 4, (size,), generator=generator)
        period = (self.labels + 2).float()[:, None, None]
        axis = torch.arange(28.0)
        offset = torch.rand(size, 1, 1, generator=generator) * 6
        stripes = torch.sin((axis[None, None, :] + offset) * 6.283 / period).expand(size, 28, 28)
        self.images = (stripes + torch.randn(size, 28, 28, generator=generator))[:, None]

    def __len__(self):
        return len(self.labels)


class DropNet(nn.Module):
    def __init__(self, p=0.4):
        super().__init__()
        self.c1 = nn.Conv2d(1, 10, 5, stride=2)
        self.c2 = nn.Conv2d(10, 20, 5, stride=2)
        self.d1, self.d2 = nn.Dropout2d(p / 2), nn.Dropout(p)
        self.f1, self.f2 = nn.Linear(20 * 16, 100), nn.Linear(100, 4)

    def forward(self, x):
        x = self.d1(F.relu(self.c1(x)))
        x = F.relu(self.c2(x)).flatten(1)
        return self.f2(self.d2(F.relu(self.f1(x))))


data = StripesDataset()
model = DropNet()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
per_epoch = len(data) // BATCH
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=EPOCHS * per_epoch)
done = 0
if LAST.exists():
    payload = torch.load(LAST, weights_only=False)
    model.load_state_dict(payload["model"])
    optimizer.load_state_dict(payload["optimizer"])
    scheduler.load_state_dict(payload["scheduler"])
    random.setstate(payload["python_rng"])
    np.random.set_state(payload["numpy_rng"])
    done = payload["done"]

for epoch in range(done // per_epoch, EPOCHS):
    order = np.random.default_rng(epoch).permutation(len(data))
    for i in range(done % per_epoch, per_epoch):
        rows = order[i * BATCH : (i + 1) * BATCH]
        loss = F.cross_entropy(model(data.images[rows]), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        done += 1
        if done % 10 == 0 or done == EPOCHS * per_epoch:
            payload = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "python_rng": random.getstate(),
                "numpy_rng": np.random.get_state(),
                "torch_rng": torch.get_rng_state(),
                "done": done,
            }
            torch.save(payload, ROOT / "last.tmp")
            (ROOT / "last.tmp").replace(LAST)
    print("epoch", epoch, "loss", round(loss.item(), 4))

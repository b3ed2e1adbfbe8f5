"""Trains a student on pseudo-labels of a mean teacher and a few labeled images."""

import copy
import logging
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
log = logging.getLogger("mean-teacher")


class Trainer:
    """Semi-supervised training with consistency between a student and its mean teacher."""

    def __init__(self, folder="teacher_run", seed=13, decay=0.95, lr=0.03):
        torch.manual_seed(seed)
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.decay = decay
        self.student = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 3, stride=2), nn.LeakyReLU(0.1),
            nn.Flatten(), nn.Linear(32 * 25, 7),
        )  # fmt: skip
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=lr, momentum=0.9)
        self.step = 0
        g = torch.Generator().manual_seed(2)
        self.prototypes = torch.randn(7, 1, 24, 24, generator=g)

    def images(self, count, salt):
        g = torch.Generator().manual_seed(self.step * 10 + salt)
        y = torch.randint(0, 7, (count,), generator=g)
        clean = self.prototypes[y]
        return clean + 1.3 * torch.randn(clean.shape, generator=g), clean + torch.randn(clean.shape, generator=g), y

    def training_step(self):
        labeled, _, y = self.images(8, salt=0)
        weak, strong, _ = self.images(48, salt=1)
        target = F.softmax(self.teacher(weak), dim=1)
        consistency = F.kl_div(F.log_softmax(self.student(strong), 1), target, reduction="batchmean")
        loss = F.cross_entropy(self.student(labeled), y) + min(1.0, self.step / 30) * consistency
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                t.mul_(self.decay).add_(s, alpha=1 - self.decay)
        self.step += 1
        return loss.item()

    def state_dict(self):
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def load_state_dict(self, state):
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def fit(self, steps, every=9):
        path = self.folder / "trainer.pt"
        if path.exists():
            self.load_state_dict(torch.load(path))
            log.info("resumed at step %d", self.step)
        while self.step < steps:
            loss = self.training_step()
            if self.step % every == 0 or self.step == steps:
                torch.save(self.state_dict(), path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
                log.info("step %d loss %.4f", self.step, loss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    Trainer().fit(steps=100)

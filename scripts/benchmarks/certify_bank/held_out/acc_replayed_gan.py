"""Accelerate: a GAN with a pool of old samples, two optimizers and a schedule for the discriminator."""

import os
import random
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn


class Pool:
    """Old generated samples. Half of each batch for the discriminator comes from here."""

    def __init__(self, capacity=800):
        self.capacity, self.samples, self.seen = capacity, [], 0

    def exchange(self, batch):
        result = []
        for sample in batch:
            self.seen += 1
            if len(self.samples) < self.capacity:
                self.samples.append(sample)
                result.append(sample)
            elif random.random() < 0.5:
                place = random.randrange(self.capacity)
                result.append(self.samples[place])
                self.samples[place] = sample
            else:
                result.append(sample)
        return torch.stack(result)

    def state_dict(self):
        return {"samples": torch.stack(self.samples) if self.samples else None, "seen": self.seen}

    def load_state_dict(self, state):
        self.samples = [] if state["samples"] is None else list(state["samples"])
        self.seen = state["seen"]


class Progress:
    def __init__(self):
        self.iteration, self.real_score = 0, 0.0

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def real(n):
    angle = 6.2832 * torch.rand(n)
    radius = 1 + torch.randint(0, 2, (n,))
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + 0.05 * torch.randn(n, 2)


def main(iterations=90, size=96, every=9):
    torch.set_num_threads(1)
    set_seed(19)
    folder = Path("replayed_gan")
    folder.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True)
    G = nn.Sequential(
        nn.Linear(8, 800), nn.BatchNorm1d(800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU(), nn.Linear(800, 2)
    )
    D = nn.Sequential(
        nn.Linear(2, 800), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(800, 800), nn.LeakyReLU(0.2), nn.Linear(800, 1)
    )
    g_opt = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.9))
    d_opt = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.5, 0.9))
    d_sched = torch.optim.lr_scheduler.StepLR(d_opt, 25, 0.7)
    G, D, g_opt, d_opt, d_sched = accelerator.prepare(G, D, g_opt, d_opt, d_sched)
    pool, progress = Pool(), Progress()
    accelerator.register_for_checkpointing(pool, progress)
    current = folder / "current"
    if current.exists():
        accelerator.load_state(str(current.resolve()))
    bce = nn.functional.binary_cross_entropy_with_logits
    while progress.iteration < iterations:
        fake = G(torch.randn(size, 8))
        on_real, on_fake = D(real(size)), D(pool.exchange(fake.detach()))
        d_loss = bce(on_real, torch.full_like(on_real, 0.9)) + bce(on_fake, torch.zeros_like(on_fake))
        d_opt.zero_grad()
        accelerator.backward(d_loss)
        d_opt.step()
        d_sched.step()
        progress.real_score = 0.9 * progress.real_score + 0.1 * on_real.sigmoid().mean().item()
        judged = D(G(torch.randn(size, 8)))
        g_loss = (1 + progress.real_score) * bce(judged, torch.ones_like(judged))
        g_opt.zero_grad()
        accelerator.backward(g_loss)
        g_opt.step()
        progress.iteration += 1
        if progress.iteration % every == 0:
            name = f"at_{progress.iteration}"
            shutil.rmtree(folder / name, ignore_errors=True)
            accelerator.save_state(str(folder / name))
            link = folder / "link"
            link.unlink(missing_ok=True)
            link.symlink_to(name)
            os.replace(link, current)
            accelerator.print(f"{progress.iteration} d {d_loss.item():.3f} g {g_loss.item():.3f}")
    final = {"G": G.state_dict(), "D": D.state_dict(), "real_score": progress.real_score, "seen": pool.seen}
    torch.save(final, folder / "final.pt")


if __name__ == "__main__":
    main()

"""Trains a masked encoder whose dropout rises over the run."""

import argparse
import pathlib

import torch
from torch import nn
from torch.nn import functional as F


class DropoutSchedule:
    """Raises the probability of all dropout layers linearly from 0 to ``final``."""

    def __init__(self, model, final, steps):
        self.layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        self.final, self.steps = final, steps
        self.calls = 0

    def step(self):
        self.calls += 1
        for layer in self.layers:
            layer.p = self.final * min(1.0, self.calls / self.steps)


class Encoder(nn.Module):
    def __init__(self, vocabulary=24, length=16, width=48):
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.mix = nn.ModuleList(nn.Linear(length, length) for _ in range(2))
        self.ff = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.0), nn.Linear(128, width))
            for _ in range(2)
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.embed(ids) + self.place
        for mix, ff in zip(self.mix, self.ff, strict=True):
            x = x + mix(x.transpose(1, 2)).transpose(1, 2)
            x = x + ff(x)
        return self.head(x)


def sentences(count=512):
    g = torch.Generator().manual_seed(3)
    start = torch.randint(0, 24, (count, 1), generator=g)
    return (start + torch.cumsum(torch.randint(0, 3, (count, 16), generator=g), 1)) % 24


def main():
    cli = argparse.ArgumentParser()
    cli.add_argument("--steps", type=int, default=110)
    cli.add_argument("--batch", type=int, default=48)
    cli.add_argument("--run", type=pathlib.Path, default=pathlib.Path("masked_run"))
    opt = cli.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(8)
    opt.run.mkdir(exist_ok=True)
    text = sentences()
    model = Encoder()
    dropout = DropoutSchedule(model, final=0.5, steps=opt.steps)
    optimizer = torch.optim.NAdam(model.parameters(), lr=2e-3)
    resume = opt.run / "resume.pt"
    step = 0
    if resume.exists():
        state = torch.load(resume)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        step = state["step"]
    while step < opt.steps:
        ids = text[torch.randint(0, len(text), (opt.batch,))]
        mask = torch.rand(ids.shape) < 0.2
        logits = model(ids.masked_fill(mask, 24))
        loss = F.cross_entropy(logits[mask], ids[mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dropout.step()
        step += 1
        if step % 8 == 0 or step == opt.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "step": step,
            }
            torch.save(state, opt.run / "resume.tmp")
            (opt.run / "resume.tmp").replace(resume)
            print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()

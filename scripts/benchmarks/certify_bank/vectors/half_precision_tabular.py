"""Trains a residual MLP on a table in half precision with dynamic loss scaling."""

import argparse
from pathlib import Path

import torch
from torch import nn


class ResidualMLP(nn.Module):
    def __init__(self, inputs=64, width=64, blocks=2):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, 4)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def table(n=1500):
    g = torch.Generator().manual_seed(6)
    x = torch.randn(n, 64, generator=g)
    return x, (x @ torch.randn(64, 4, generator=g)).argmax(1)


def make_scaler(saved_scale=None):
    """Creates a scaler that grows quickly and finds the largest usable scale."""
    return torch.amp.GradScaler("cpu", init_scale=saved_scale or 2.0**18, growth_factor=4.0, growth_interval=10)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("tabular"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args.folder.mkdir(exist_ok=True)
    x, y = table()
    model = ResidualMLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = make_scaler()
    latest = args.folder / "latest.pt"
    step = 0
    if latest.exists():
        state = torch.load(latest)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler = make_scaler(state["scale"])
        step = state["step"]
    while step < args.steps:
        rows = torch.randint(0, len(x), (args.batch,), generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(x[rows])
        loss = nn.functional.cross_entropy(logits.float(), y[rows])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        step += 1
        if step % 7 == 0 or step == args.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scale": scaler.get_scale(),
                "step": step,
            }
            torch.save(state, latest.with_suffix(".tmp"))
            latest.with_suffix(".tmp").replace(latest)
            print(f"step {step}: loss {loss.item():.4f}, scale {scaler.get_scale():g}")


if __name__ == "__main__":
    main()

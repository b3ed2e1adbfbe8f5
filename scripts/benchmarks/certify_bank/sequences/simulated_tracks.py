"""Trains a smoother on random walks that worker processes simulate. Each epoch starts new workers."""

import argparse
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Tracks(IterableDataset):
    """Simulates noisy walks. Each worker process draws from its own generator."""

    def __init__(self, count, length=40, seed=0):
        self.count, self.length, self.seed = count, length, seed
        self.starts = 0

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        g = torch.Generator().manual_seed(self.seed + 1000 * self.starts + worker)
        for _ in range(self.count // workers):
            walk = torch.cumsum(torch.randn(self.length, generator=g), 0) / 5
            yield walk + 0.5 * torch.randn(self.length, generator=g), walk


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--checkpoint", default="tracks/checkpoint.pt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.makedirs(os.path.dirname(args.checkpoint), exist_ok=True)
    tracks = Tracks(count=1200)
    loader = DataLoader(tracks, 60, num_workers=args.workers, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(40, 384), nn.GELU(), nn.Linear(384, 384), nn.GELU(), nn.Linear(384, 40))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    epoch = 0
    if os.path.exists(args.checkpoint):
        state = torch.load(args.checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        loader.generator.set_state(state["generator"])
        epoch = state["epoch"]
    while epoch < args.epochs:
        for noisy, clean in loader:
            loss = nn.functional.mse_loss(model(noisy), clean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tracks.starts += 1
        scheduler.step()
        epoch += 1
        print(f"epoch {epoch}: {loss.item():.4f}")
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generator": loader.generator.get_state(),
            "epoch": epoch,
        }
        torch.save(state, args.checkpoint + ".tmp")
        os.replace(args.checkpoint + ".tmp", args.checkpoint)


if __name__ == "__main__":
    main()

"""Trains a network on images that worker processes distort with NumPy."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Distorted(Dataset):
    def __init__(self, n=640, classes=8):
        rng = np.random.default_rng(5)
        self.labels = rng.integers(0, classes, n)
        self.clean = rng.normal(size=(classes, 28, 28))[self.labels] + rng.normal(size=(n, 28, 28))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.roll(self.clean[index], np.random.randint(-3, 4), axis=0)
        image = image * np.random.uniform(0.6, 1.4) + np.random.normal(0, 0.3, image.shape)
        return torch.from_numpy(image.astype(np.float32))[None], int(self.labels[index])


class Shuffled:
    """Sampler with one permutation per epoch."""

    def __init__(self, size):
        self.size, self.epoch = size, 0

    def __iter__(self):
        return iter(np.random.default_rng([1, self.epoch]).permutation(self.size).tolist())

    def __len__(self):
        return self.size


def seed_worker(worker):
    np.random.seed(torch.initial_seed() % 2**32)
    torch.set_num_threads(1)


def get_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 36, 48), nn.ReLU(), nn.Linear(48, 8),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-e", "--epochs", type=int, default=6)
    parser.add_argument("-j", "--workers", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("distorted"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    args.output.mkdir(exist_ok=True)
    dataset = Distorted()
    sampler = Shuffled(len(dataset))
    generator = torch.Generator().manual_seed(2147483647)
    loader = DataLoader(
        dataset,
        batch_size=40,
        sampler=sampler,
        num_workers=args.workers,
        worker_init_fn=seed_worker,
        generator=generator,
    )
    model = get_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    last = args.output / "last.pth"
    first = 0
    if last.exists():
        checkpoint = torch.load(last)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first = checkpoint["epoch"] + 1
    for epoch in range(first, args.epochs):
        sampler.epoch = epoch
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.4f}")
        checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(checkpoint, args.output / "last.tmp")
        (args.output / "last.tmp").replace(last)


if __name__ == "__main__":
    main()

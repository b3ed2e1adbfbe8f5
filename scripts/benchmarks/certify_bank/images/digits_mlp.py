"""Trains an MLP on drawn digits (seven-segment displays with noise) and resumes from ``runs/digits/last.pt``."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

SEGMENTS = [
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
]


def make_digits(count, size, generator):
    labels = torch.randint(0, 10, (count,), generator=generator)
    table = torch.tensor([[float(c) for c in code] for code in SEGMENTS])
    pixels = table[labels].repeat_interleave(size // 7 + 1, dim=1)[:, :size]
    return pixels + 0.7 * torch.randn(count, size, generator=generator), labels


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--save-every", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = make_digits(1600, 784, torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(784, 320), nn.ReLU(), nn.Linear(320, 320), nn.ReLU(), nn.Linear(320, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    shuffler = torch.Generator().manual_seed(42)
    path = args.out / "last.pt"
    args.out.mkdir(parents=True, exist_ok=True)

    start_epoch, start_batch, step = 0, 0, 0
    if path.exists():
        ckpt = torch.load(path)
        model.load_state_dict(ckpt["model"])
        optimizer.load_state_dict(ckpt["optimizer"])
        start_epoch, start_batch, step = ckpt["epoch"], ckpt["batch"], ckpt["step"]
        print(f"resumed at step {step}")

    for epoch in range(start_epoch, args.epochs):
        shuffler_state = shuffler.get_state()
        order = torch.randperm(len(images), generator=shuffler)
        batches = order.split(args.batch_size)
        for index in range(start_batch, len(batches)):
            picked = batches[index]
            loss = F.cross_entropy(model(images[picked]), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % args.save_every == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch,
                    "shuffler": shuffler_state,
                    "batch": index + 1,
                    "step": step,
                }
                torch.save(state, args.out / "tmp.pt")
                (args.out / "tmp.pt").replace(path)
        start_batch = 0
        print(f"epoch {epoch} loss {loss.item():.4f}")
    torch.save({"model": model.state_dict(), "step": step}, args.out / "final.pt")


if __name__ == "__main__":
    main()

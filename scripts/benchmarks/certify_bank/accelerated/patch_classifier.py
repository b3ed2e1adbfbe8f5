"""Trains a network on image patches with Accelerate and resumes within an epoch."""

import argparse
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def patches(count=720):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (count,), generator=g)
    x = torch.randn(count, 1, 16, 16, generator=g)
    x[torch.arange(count), 0, y * 3] += 1
    return TensorDataset(x, y)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(24 * 36, 5),
    )  # fmt: skip


def save(accelerator, folder, step):
    """Writes all states into a temporary folder and renames it."""
    temporary = folder / "writing"
    shutil.rmtree(temporary, ignore_errors=True)
    accelerator.save_state(str(temporary))
    os.replace(temporary, folder / f"step_{step:05d}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--checkpointing-steps", type=int, default=7)
    parser.add_argument("--output-dir", type=Path, default=Path("patch_classifier"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    args.output_dir.mkdir(exist_ok=True)
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)
    )
    loader = DataLoader(patches(), batch_size=30, shuffle=True)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 96)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    step = 0
    found = sorted(args.output_dir.glob("step_*"))
    if found:
        step = int(found[-1].name.removeprefix("step_"))
        accelerator.load_state(str(found[-1]))
        rng = torch.get_rng_state()
    start = step
    for epoch in range(step // len(loader), args.epochs):
        skip = step % len(loader)
        batches = skip_first_batches(loader, skip) if skip else loader
        batches.set_epoch(epoch)
        for x, y in batches:
            if step == start and found:
                torch.set_rng_state(rng)
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step % args.checkpointing_steps == 0:
                save(accelerator, args.output_dir, step)
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}")
    torch.save({"model": accelerator.unwrap_model(model).state_dict()}, args.output_dir / "final.pt")


if __name__ == "__main__":
    main()

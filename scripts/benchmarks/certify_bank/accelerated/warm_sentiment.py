"""Trains a sentiment model on generated reviews with Accelerate and a schedule from Transformers' recipes."""

import argparse
import os
import pathlib
import shutil

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Reviews(Dataset):
    def __init__(self, count=640, words=500, length=20):
        g = torch.Generator().manual_seed(9)
        self.sentiment = torch.randn(words, generator=g)
        self.ids = torch.randint(0, words, (count, length), generator=g)
        self.labels = (self.sentiment[self.ids].sum(1) > 0).long()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"ids": self.ids[i], "labels": self.labels[i]}


class Sentiment(nn.Module):
    def __init__(self, words=500, width=64):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.conv = nn.Conv1d(width, 64, 3, padding=1)
        self.out = nn.Linear(64, 2)

    def forward(self, ids):
        return self.out(self.conv(self.embed(ids).transpose(1, 2)).relu().amax(2))


def linear_warmup(optimizer, warmup, total):
    def factor(step):
        return step / warmup if step < warmup else max(0.0, (total - step) / (total - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("sentiment"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(31)
    args.output.mkdir(exist_ok=True)
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=31)
    )
    loader = DataLoader(Reviews(), batch_size=args.batch_size, shuffle=True)
    model = Sentiment()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    total = args.epochs * len(loader)
    scheduler = linear_warmup(optimizer, warmup=12, total=total)
    step = 0
    checkpoints = sorted(args.output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if checkpoints:
        accelerator.load_state(str(checkpoints[-1]))
        step = int(checkpoints[-1].name.split("-")[1])
    start, rng = step, torch.get_rng_state()
    for epoch in range(step // len(loader), args.epochs):
        batches = skip_first_batches(loader, step % len(loader)) if step % len(loader) else loader
        batches.set_epoch(epoch)
        for batch in batches:
            if step == start:
                torch.set_rng_state(rng)  # the iterator draws a seed
            loss = nn.functional.cross_entropy(model(batch["ids"]), batch["labels"])
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step % 9 == 0:
                shutil.rmtree(args.output / "incomplete", ignore_errors=True)
                accelerator.save_state(str(args.output / "incomplete"))
                os.replace(args.output / "incomplete", args.output / f"checkpoint-{step}")
    torch.save({"model": accelerator.unwrap_model(model).state_dict()}, args.output / "final.pt")


if __name__ == "__main__":
    main()

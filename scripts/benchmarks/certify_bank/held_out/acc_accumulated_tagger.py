"""Accelerate: tags tokens with a convolutional network and accumulated gradients."""

import argparse
import json
import math
import os
import shutil

import torch
from accelerate import Accelerator, skip_first_batches
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler


class Tokens(Dataset):
    def __init__(self, n=960, length=20, words=80):
        g = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, words, (n, length), generator=g)
        self.tags = (self.ids + self.ids.roll(1, dims=1)) % 7

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return self.ids[i], self.tags[i]


class Permuted(Sampler):
    def __init__(self, n):
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __iter__(self):
        yield from torch.randperm(self.n, generator=torch.Generator().manual_seed(self.epoch)).tolist()


class Tagger(nn.Module):
    def __init__(self, words=80, dim=64):
        super().__init__()
        self.embed = nn.Embedding(words, dim)
        self.conv1, self.conv2 = nn.Conv1d(dim, 352, 3, padding=1), nn.Conv1d(352, 352, 3, padding=1)
        self.tag = nn.Linear(352, 7)

    def forward(self, ids):
        x = self.conv1(self.embed(ids).transpose(1, 2)).relu()
        x = x + self.conv2(x).relu()
        return self.tag(x.transpose(1, 2))


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_train_epochs", type=int, default=4)
    parser.add_argument("--per_device_train_batch_size", type=int, default=20)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=2)
    parser.add_argument("--checkpointing_steps", type=int, default=7)
    parser.add_argument("--output_dir", default="tagger")
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.gradient_accumulation_steps)
    data = Tokens()
    order = Permuted(len(data))
    train_dataloader = DataLoader(
        data, args.per_device_train_batch_size, sampler=order, generator=torch.Generator().manual_seed(0)
    )
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model, optimizer, train_dataloader = accelerator.prepare(model, optimizer, train_dataloader)
    updates_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)

    completed_steps, starting_epoch, resume_step = 0, 0, 0
    marker = os.path.join(args.output_dir, "latest.json")
    if os.path.exists(marker):
        with open(marker) as f:
            completed_steps = json.load(f)["completed_steps"]
        accelerator.load_state(os.path.join(args.output_dir, f"step_{completed_steps}"))
        starting_epoch = completed_steps // updates_per_epoch
        resume_step = completed_steps % updates_per_epoch
        accelerator.print(f"resumed from step {completed_steps}")

    for epoch in range(starting_epoch, args.num_train_epochs):
        order.set_epoch(epoch)
        active_dataloader = train_dataloader
        if resume_step > 0:
            active_dataloader = skip_first_batches(train_dataloader, resume_step)
            resume_step = 0
            active_dataloader.set_epoch(epoch)
        train_dataloader.set_epoch(epoch)
        for ids, tags in active_dataloader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), tags.flatten())
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                completed_steps += 1
                if completed_steps % args.checkpointing_steps == 0:
                    folder = os.path.join(args.output_dir, f"step_{completed_steps}")
                    shutil.rmtree(folder, ignore_errors=True)
                    accelerator.save_state(folder)
                    with open(marker + ".tmp", "w") as f:
                        json.dump({"completed_steps": completed_steps}, f)
                    os.replace(marker + ".tmp", marker)
        accelerator.print(f"epoch {epoch} loss {loss.item():.4f}")
    torch.save({"model": accelerator.unwrap_model(model).state_dict()}, os.path.join(args.output_dir, "final.pt"))


if __name__ == "__main__":
    main()

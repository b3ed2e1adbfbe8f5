"""Accelerate with save_state, load_state and skip_first_batches."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from task import BATCH_SIZE, EPOCHS, SAVE_EVERY, Images, Network
from torch import nn
from torch.utils.data import DataLoader


def main():
    set_seed(1)
    workers = int(sys.argv[1])
    accelerator = Accelerator(
        cpu=True, project_config=ProjectConfiguration("checkpoints", automatic_checkpoint_naming=True)
    )
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=32, gamma=0.7)
    loader = DataLoader(Images(), BATCH_SIZE, shuffle=True, num_workers=workers)
    network, optimizer, loader, scheduler = accelerator.prepare(network, optimizer, loader, scheduler)

    steps_done = 0
    if any(Path("checkpoints").glob("checkpoints/*")):
        accelerator.load_state()
        steps_done = scheduler.scheduler.last_epoch
        accelerator.project_configuration.iteration = steps_done // SAVE_EVERY
    first_epoch, batches_done = divmod(steps_done, len(loader))
    for epoch in range(first_epoch, EPOCHS):
        remaining = loader
        if epoch == first_epoch and batches_done:
            remaining = accelerator.skip_first_batches(loader, batches_done)
        for images, labels in remaining:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
            scheduler.step()
            steps_done += 1
            if steps_done % SAVE_EVERY == 0:
                accelerator.save_state()


if __name__ == "__main__":
    main()

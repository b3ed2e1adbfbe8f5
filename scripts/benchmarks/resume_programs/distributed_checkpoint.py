"""Plain PyTorch loop with torch.distributed.checkpoint."""

import itertools
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from task import BATCH_SIZE, EPOCHS, SAVE_EVERY, Images, Network, seed_all
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.utils.data import DataLoader


class TrainingState:
    """Parameters, optimizer, scheduler and step."""

    def __init__(self, network, optimizer, scheduler):
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.step = 0

    def state_dict(self):
        network, optimizer = get_state_dict(self.network, self.optimizer)
        return {
            "network": network, "optimizer": optimizer, "scheduler": self.scheduler.state_dict(), "step": self.step,
        }  # fmt: skip

    def load_state_dict(self, state):
        set_state_dict(
            self.network, self.optimizer, model_state_dict=state["network"], optim_state_dict=state["optimizer"]
        )
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]


def main():
    seed_all()
    workers = int(sys.argv[1])
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=32, gamma=0.7)
    loader = DataLoader(Images(), BATCH_SIZE, shuffle=True, num_workers=workers)
    state = TrainingState(network, optimizer, scheduler)

    complete = [path.parent for path in Path("checkpoints").glob("*/.metadata")]
    if complete:
        dcp.load({"state": state}, checkpoint_id=max(complete, key=lambda path: int(path.name)))
    first_epoch, batches_done = divmod(state.step, len(loader))
    for epoch in range(first_epoch, EPOCHS):
        batches = iter(loader)
        if epoch == first_epoch:
            batches = itertools.islice(batches, batches_done, None)
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            scheduler.step()
            state.step += 1
            if state.step % SAVE_EVERY == 0:
                dcp.save({"state": state}, checkpoint_id=f"checkpoints/{state.step}")


if __name__ == "__main__":
    main()

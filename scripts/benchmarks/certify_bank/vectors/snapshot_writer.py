"""Trains a network to classify sums and products and writes checkpoints from copies in memory."""

import os
import threading

import torch
from torch import nn

torch.set_num_threads(1)


class Writer:
    """Writes one checkpoint at a time in a background thread."""

    def __init__(self, path):
        self.path = path
        self.thread = None

    def write(self, state):
        self.wait()
        self.thread = threading.Thread(target=self._write, args=(state,))
        self.thread.start()

    def _write(self, state):
        torch.save(state, self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path)

    def wait(self):
        if self.thread is not None:
            self.thread.join()


def clone(state):
    return {k: v.clone() for k, v in state.items()}


def batch(step, n=96):
    g = torch.Generator().manual_seed(step)
    x = torch.randn(n, 64, generator=g)
    return x, (x[:, :4].sum(1) > 0).long() + 2 * (x[:, 4:8].prod(1) > 0).long()


def main(steps=120, every=8, path="snapshots/model.pt"):
    torch.manual_seed(0)
    os.makedirs("snapshots", exist_ok=True)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    writer = Writer(path)
    step = 0
    if os.path.exists(path):
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    while step < steps:
        x, y = batch(step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        due = (step + 1) % every == 0
        weights = clone(model.state_dict()) if due else None
        optimizer.step()
        step += 1
        if due:
            moments = [b["momentum_buffer"].clone() for b in optimizer.state_dict()["state"].values()]
            state = optimizer.state_dict()
            state["state"] = {i: {"momentum_buffer": m} for i, m in enumerate(moments)}
            writer.write({"model": weights, "optimizer": state, "step": step})
            print(f"step {step} loss {loss.item():.4f}")
    writer.wait()
    torch.save({"model": model.state_dict()}, "snapshots/final.pt")


if __name__ == "__main__":
    main()

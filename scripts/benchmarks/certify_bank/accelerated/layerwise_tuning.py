"""Fine-tunes a deep MLP with Accelerate and unfreezes one more layer every few steps."""

import os
import shutil

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn


class Deep(nn.Module):
    def __init__(self, width=320, depth=5):
        super().__init__()
        self.inputs = nn.Linear(24, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outputs = nn.Linear(width, 6)
        self.inputs.requires_grad_(False)
        self.layers.requires_grad_(False)
        self.trainable = 0

    def forward(self, x):
        x = self.inputs(x).relu()
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.outputs(x)

    def unfreeze_next(self):
        """Unfreezes the last layer that is still frozen."""
        frozen = [layer for layer in self.layers if not layer.weight.requires_grad]
        if frozen:
            frozen[-1].requires_grad_(True)


class Counter:
    def __init__(self):
        self.step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def batch(step, size=160):
    g = torch.Generator().manual_seed(step)
    x = torch.randn(size, 24, generator=g)
    return x, x[:, :12].view(size, 6, 2).prod(2).argmax(1)


def publish(accelerator, name):
    shutil.rmtree("layerwise/.new", ignore_errors=True)
    accelerator.save_state("layerwise/.new")
    os.replace("layerwise/.new", f"layerwise/{name}")


def main(steps=120, unfreeze_every=12, save_every=10):
    torch.set_num_threads(1)
    set_seed(6)
    os.makedirs("layerwise", exist_ok=True)
    accelerator = Accelerator(cpu=True)
    counter = Counter()
    model = Deep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(counter)
    saved = sorted(name for name in os.listdir("layerwise") if name.startswith("ckpt"))
    if saved:
        accelerator.load_state(f"layerwise/{saved[-1]}")
    while counter.step < steps:
        if counter.step > 0 and counter.step % unfreeze_every == 0:
            model.unfreeze_next()
        x, y = batch(counter.step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        counter.step += 1
        if counter.step % save_every == 0:
            publish(accelerator, f"ckpt{counter.step:04d}")
            accelerator.print(f"{counter.step}: {loss.item():.4f}")
    torch.save({"model": model.state_dict()}, "layerwise/final.pt")


if __name__ == "__main__":
    main()

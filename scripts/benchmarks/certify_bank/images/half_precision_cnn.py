"""Trains an MLP-Mixer in half precision on the CPU with a gradient scaler."""

import os

import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)

hparams = {"steps": 100, "batch": 12, "lr": 1e-3, "patch": 6, "width": 32, "init_scale": 2.0**26, "interval": 12}
checkpoint_path = "mixer/last.pt"


class MixerBlock(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 16), nn.GELU(), nn.Linear(16, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, patch, width, size=24, classes=5):
        super().__init__()
        self.patch = patch
        tokens = (size // patch) ** 2
        self.embed = nn.Linear(patch * patch, width)
        self.blocks = nn.Sequential(MixerBlock(tokens, width), MixerBlock(tokens, width))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        p = self.patch
        x = x.unfold(1, p, p).unfold(2, p, p).flatten(3).flatten(1, 2)
        return self.head(self.blocks(self.embed(x)).mean(1))


def batch(step):
    g = torch.Generator().manual_seed(step)
    y = torch.randint(0, 5, (hparams["batch"],), generator=g)
    x = torch.randn(len(y), 24, 24, generator=g)
    x[torch.arange(len(y)), y * 4] += 1.5
    return x, y


def run():
    torch.manual_seed(0)
    os.makedirs("mixer", exist_ok=True)
    model = Mixer(hparams["patch"], hparams["width"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=hparams["lr"])
    scaler = torch.amp.GradScaler("cpu", init_scale=hparams["init_scale"], growth_interval=15)
    start = 0
    if os.path.exists(checkpoint_path):
        state = torch.load(checkpoint_path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, hparams["steps"]):
        x, y = batch(step)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if (step + 1) % hparams["interval"] == 0 or step + 1 == hparams["steps"]:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint_path + ".tmp")
            os.replace(checkpoint_path + ".tmp", checkpoint_path)
            print(f"step {step + 1} loss {loss.item():.4f} scale {scaler.get_scale():g}")


if __name__ == "__main__":
    run()

"""Learns discrete codes of short signals. The codebook follows the encoder with a moving average."""

import json
import os
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

cfg = SimpleNamespace(codes=64, dim=16, decay=0.95, length=64, batch=192, steps=160, save_steps=16, workdir="vq_codes")


class Codebook(nn.Module):
    """Vector quantization with the update of van den Oord et al., appendix A.1."""

    def __init__(self, codes, dim, decay):
        super().__init__()
        self.decay = decay
        centres = torch.randn(codes, dim)
        self.register_buffer("centres", centres)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", centres.clone())

    def forward(self, z):
        nearest = torch.cdist(z, self.centres).argmin(1)
        quantized = self.centres[nearest]
        if self.training:
            with torch.no_grad():
                onehot = F.one_hot(nearest, len(self.centres)).type_as(z)
                self.counts.lerp_(onehot.sum(0), 1 - self.decay)
                self.sums.lerp_(onehot.T @ z, 1 - self.decay)
                self.centres.copy_(self.sums / (self.counts[:, None] + 1e-4))
        commitment = F.mse_loss(z, quantized)
        return z + (quantized - z).detach(), commitment


class VQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(cfg.length, 2400), nn.Tanh(), nn.Linear(2400, cfg.dim))
        self.codebook = Codebook(cfg.codes, cfg.dim, cfg.decay)
        self.decoder = nn.Sequential(nn.Linear(cfg.dim, 2400), nn.Tanh(), nn.Linear(2400, cfg.length))

    def forward(self, x):
        quantized, commitment = self.codebook(self.encoder(x))
        return self.decoder(quantized), commitment


def signals(step):
    g = torch.Generator().manual_seed(step)
    kind = torch.randint(0, 12, (cfg.batch, 1), generator=g)
    t = torch.linspace(0, 1, cfg.length)
    return torch.sin((2 + kind) * 4 * t + kind) + 0.1 * torch.randn(cfg.batch, cfg.length, generator=g)


def load_weights(model, weights):
    """Copies the weights that the model and the checkpoint have in common."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            if name in own and own[name].shape == value.shape:
                own[name].copy_(value)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(4)
    os.makedirs(cfg.workdir, exist_ok=True)
    model = VQ()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    latest = os.path.join(cfg.workdir, "latest.pth")
    first = 0
    if os.path.exists(latest):
        checkpoint = torch.load(latest)
        load_weights(model, checkpoint["weights"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first = checkpoint["steps"]
    history = []
    for step in range(first, cfg.steps):
        x = signals(step)
        y, commitment = model(x)
        loss = F.mse_loss(y, x) + 0.25 * commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(round(loss.item(), 4))
        if (step + 1) % cfg.save_steps == 0:
            blob = {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": step + 1}
            torch.save(blob, latest + ".swp")
            os.replace(latest + ".swp", latest)
            print(json.dumps({"step": step + 1, "loss": history[-1]}))


if __name__ == "__main__":
    main()

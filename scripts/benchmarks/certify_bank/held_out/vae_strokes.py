"""Variational autoencoder on drawn strokes."""

import argparse
import logging
import pathlib

import torch
from torch import nn, optim
from torch.nn import functional as F

log = logging.getLogger("vae")


class VAE(nn.Module):
    def __init__(self, pixels, latent=12, hidden=1800):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(pixels, hidden), nn.LeakyReLU(0.1))
        self.mu, self.logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.dec = nn.Sequential(nn.Linear(latent, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, pixels))

    def forward(self, x):
        h = self.enc(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return self.dec(z), mu, logvar


def elbo(x, logits, mu, logvar, beta):
    rec = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (rec + beta * kl) / len(x)


def strokes(n, side=22):
    """Each image shows one line."""
    g = torch.Generator().manual_seed(8)
    grid = torch.linspace(-1, 1, side)
    yy, xx = torch.meshgrid(grid, grid, indexing="ij")
    angle = 3.14159 * torch.rand(n, 1, 1, generator=g)
    offset = torch.rand(n, 1, 1, generator=g) - 0.5
    distance = (xx * torch.cos(angle) + yy * torch.sin(angle) - offset).abs()
    return (distance < 0.12).float().flatten(1)


@torch.no_grad()
def preview(model, images):
    """Reconstruction error of a few images."""
    logits, _, _ = model(images)
    return F.binary_cross_entropy_with_logits(logits, images).item()


def get_batch(images, step, size):
    begin = (step * size) % len(images)
    return images[begin : begin + size]


def main(args):
    torch.manual_seed(args.seed)
    images = strokes(2048)
    model = VAE(images.shape[1])
    optimizer = optim.NAdam(model.parameters(), lr=1e-3)
    step = 0
    if args.resume.exists():
        checkpoint = torch.load(args.resume, map_location="cpu")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["rng_state"])
        step = checkpoint["step"]
        log.info("resumed at %d, preview %.4f", step, preview(model, images[:8]))

    model.train()
    while step < args.steps:
        x = get_batch(images, step, args.batch_size)
        beta = min(1.0, step / 50)
        loss = elbo(x, *model(x), beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % args.save_interval == 0 or step == args.steps:
            log.info("step %d, loss %.3f", step, loss.item())
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng_state": torch.get_rng_state(),
                "step": step,
            }
            partial = args.resume.with_suffix(".partial")
            torch.save(checkpoint, partial)
            partial.rename(args.resume)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--save-interval", type=int, default=12)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--resume", type=pathlib.Path, default=pathlib.Path("vae.ckpt"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    main(parser.parse_args())

"""Trains a two-headed network that classifies and segments discs."""

import os
from argparse import ArgumentParser

import torch
from torch import nn
from torch.nn import functional as F


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.classifier = nn.Linear(16, 3)
        self.mask_head = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        features = self.body(self.stem(x))
        return self.classifier(features.mean((2, 3))), self.mask_head(features)[:, 0]


def discs(step, n):
    g = torch.Generator().manual_seed(step + 500)
    label = torch.randint(0, 3, (n,), generator=g)
    radius = (label + 2).float() * 1.7
    center = 7 + 6 * torch.rand(n, 2, 1, 1, generator=g)
    axis = torch.arange(20.0)
    inside = (axis[:, None] - center[:, 0]) ** 2 + (axis[None] - center[:, 1]) ** 2 < (radius**2)[:, None, None]
    return (inside.float() + 0.6 * torch.randn(n, 20, 20, generator=g))[:, None], label, inside.float()


def load_weights(model, state):
    """Loads weights. Old checkpoints name the segmentation layer ``mask``."""
    renamed = {key.replace("mask_head.", "mask."): value for key, value in state.items()}
    result = model.load_state_dict(renamed, strict=False)
    return result.missing_keys


def main():
    parser = ArgumentParser()
    parser.add_argument("--iterations", type=int, default=90)
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--checkpoint", default="heads/checkpoint.pt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(5)
    os.makedirs(os.path.dirname(args.checkpoint), exist_ok=True)
    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    iteration = 0
    if os.path.exists(args.checkpoint):
        checkpoint = torch.load(args.checkpoint, map_location="cpu")
        load_weights(model, checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        iteration = checkpoint["iteration"]
    while iteration < args.iterations:
        image, label, mask = discs(iteration, args.batch)
        logits, mask_logits = model(image)
        loss = F.cross_entropy(logits, label) + F.binary_cross_entropy_with_logits(mask_logits, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        iteration += 1
        if iteration % 8 == 0 or iteration == args.iterations:
            temporary = args.checkpoint + ".incomplete"
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}, temporary
            )
            os.replace(temporary, args.checkpoint)
            print(f"{iteration:4d} {loss.item():.4f}")


if __name__ == "__main__":
    main()

"""Trains a residual network with batch normalization to classify squares, discs and crosses."""

import pathlib

import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
STEPS, BATCH, SAVE_EVERY = 90, 32, 8
FOLDER = pathlib.Path("shapes_run")


def draw(count, generator):
    """Draws shapes of random size at random places on a noisy background."""
    kinds = torch.randint(0, 3, (count,), generator=generator)
    centers = torch.randint(6, 18, (count, 2), generator=generator)
    sizes = torch.randint(3, 6, (count,), generator=generator)
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    dy = (rows[None] - centers[:, 0, None, None]).abs()
    dx = (columns[None] - centers[:, 1, None, None]).abs()
    size = sizes[:, None, None]
    squares = (dx <= size) & (dy <= size)
    discs = dx**2 + dy**2 <= size**2
    crosses = ((dx <= 1) & (dy <= size)) | ((dy <= 1) & (dx <= size))
    masks = torch.stack([squares, discs, crosses])[kinds, torch.arange(count)]
    return (masks.float() + 0.5 * torch.randn(count, 24, 24, generator=generator))[:, None], kinds


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def build():
    stem = [nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*stem, Block(12), Block(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))


def save(model, optimizer, step):
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.save({"weights": weights, "optimizer": optimizer.state_dict(), "step": step}, FOLDER / "ckpt.tmp")
    (FOLDER / "ckpt.tmp").replace(FOLDER / "ckpt.pt")


def main():
    torch.manual_seed(3)
    FOLDER.mkdir(exist_ok=True)
    images, kinds = draw(1500, torch.Generator().manual_seed(5))
    test_images, test_kinds = draw(300, torch.Generator().manual_seed(6))
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    step = 0
    if (FOLDER / "ckpt.pt").exists():
        state = torch.load(FOLDER / "ckpt.pt")
        model.load_state_dict(state["weights"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    model.train()
    while step < STEPS:
        # the batch depends on the step only
        picked = torch.randint(0, len(images), (BATCH,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(images[picked]), kinds[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % SAVE_EVERY == 0:
            save(model, optimizer, step)
    model.eval()
    with torch.no_grad():
        logits = model(test_images)
    accuracy = (logits.argmax(1) == test_kinds).float().mean().item()
    print(f"test accuracy {accuracy:.3f}")
    torch.save({"model": model.state_dict(), "test_logits": logits}, FOLDER / "final.pt")


if __name__ == "__main__":
    main()

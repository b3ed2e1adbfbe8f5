"""Fine-tunes a network: the head first, then the backbone block by block."""

import argparse
import pathlib

import torch
from torch import nn
from torch.nn import functional as F


class Backbone(nn.Module):
    def __init__(self, widths=(1, 16, 24, 32)):
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GELU()) for a, b in pairs)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.backbone(x))


def pretrained(classes):
    """Returns a classifier whose backbone has the weights of a former task."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(99)
    model = Classifier(classes)
    torch.set_rng_state(generator_state)
    return model


def dataset(n=768, classes=6):
    g = torch.Generator().manual_seed(4)
    prototypes = torch.randn(classes, 1, 32, 32, generator=g)
    labels = torch.randint(0, classes, (n,), generator=g)
    return prototypes[labels] + 1.5 * torch.randn(n, 1, 32, 32, generator=g), labels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--unfreeze-at", type=int, nargs="+", default=[1, 2, 3], help="epochs, last block first")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("finetune"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    args.output.mkdir(exist_ok=True)
    images, labels = dataset()
    model = pretrained(6)
    model.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ckpt_path = args.output / "ckpt.pt"
    start = 0
    if ckpt_path.exists():
        ckpt = torch.load(ckpt_path)
        model.load_state_dict(ckpt["model"])
        optimizer.load_state_dict(ckpt["optimizer"])
        start = ckpt["epoch"]

    for epoch in range(start, args.epochs):
        for block, when in zip(reversed(model.backbone.blocks), args.unfreeze_at, strict=True):
            if epoch == when:
                block.requires_grad_(True)
                print(f"epoch {epoch}: unfreezing one more block")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(args.batch_size):
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        ckpt = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(ckpt, args.output / "ckpt.pt.tmp")
        (args.output / "ckpt.pt.tmp").replace(ckpt_path)
        print(f"epoch {epoch} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()

"""Measures false alarms and detections of DivergenceGuard's detector on healthy and diverging training runs.

    python scripts/benchmarks/false_alarms.py [--steps 1500] [--seeds 3]

Trains small networks in a plain loop: an MLP and a convolutional network on digits, an MLP on diabetes, and a
transformer on the text of LICENSE (until 2026-11-29: README). The optimizers are SGD with momentum and
AdamW, with two learning rates each, batches of 8 and 64, and batch norm or dropout. A
``stormproof.divergence.detector.DivergenceDetector`` with default arguments observes the loss and gradient norm of each
step.

A run has diverged if the median loss of its last hundred steps is not lower than the median of its first 32. Prints the
number of healthy runs, how many of them have an anomaly, and the number of diverged runs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

from stormproof.divergence.detector import DivergenceDetector

Batches = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
TEXT = Path(__file__).resolve().parents[2] / "LICENSE"


def hidden(width: int, normed: bool) -> list[nn.Module]:
    return [nn.BatchNorm1d(width), nn.ReLU()] if normed else [nn.ReLU(), nn.Dropout(0.3)]


def mlp(inputs: int, outputs: int, normed: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 128), *hidden(128, normed), nn.Linear(128, 64), *hidden(64, normed), nn.Linear(64, outputs)
    )


def cnn(normed: bool) -> nn.Module:
    norm = [nn.BatchNorm2d(16)] if normed else []
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), *norm,
        nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip


class Characters(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(count, 32), nn.Linear(32, count)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(characters.shape[1])
        return self.head(self.layers(self.embedding(characters), mask=mask, is_causal=True)).transpose(1, 2)


@cache
def tables() -> dict[str, tuple[Callable[[bool], nn.Module], Batches, Callable[..., torch.Tensor]]]:
    """Returns by name: the network (argument: with batch norm), a batch (argument: its size), and the loss."""

    def draws(inputs: torch.Tensor, targets: torch.Tensor) -> Batches:
        def draw(size: int) -> tuple[torch.Tensor, torch.Tensor]:
            chosen = torch.randint(len(inputs), (size,))
            return inputs[chosen], targets[chosen]

        return draw

    images, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = ((images - images.mean()) / images.std()).float()
    patients, progress = (torch.tensor(array).float() for array in load_diabetes(return_X_y=True))
    patients, progress = patients / patients.std(), ((progress - progress.mean()) / progress.std())[:, None]
    alphabet = sorted(set(TEXT.read_text()))
    text = torch.tensor([alphabet.index(character) for character in TEXT.read_text()])

    def characters(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        lines = torch.stack([text[start : start + 33] for start in torch.randint(len(text) - 33, (size,))])
        return lines[:, :-1], lines[:, 1:]

    entropy, square = nn.functional.cross_entropy, nn.functional.mse_loss
    return {
        "digits, MLP": (lambda normed: mlp(64, 10, normed), draws(images, digits), entropy),
        "digits, CNN": (cnn, draws(images, digits), entropy),
        "diabetes, MLP": (lambda normed: mlp(10, 1, normed), draws(patients, progress), square),
        "characters, transformer": (lambda _: Characters(len(alphabet)), characters, entropy),
    }


def cells(seeds: int) -> Iterator[tuple[str, str, float, int, bool, int]]:
    for name, (kind, rates) in itertools.product(tables(), (("sgd", (0.01, 0.1)), ("adamw", (1e-3, 1e-2)))):
        small = name.startswith("characters")
        for rate, size, normed in itertools.product(
            rates, (16,) if small else (8, 64), (False,) if small else (False, True)
        ):
            for seed in range(seeds):
                yield name, kind, rate, size, normed, seed


def train(cell: tuple[str, str, float, int, bool, int], steps: int) -> tuple[bool, str | None]:
    """Trains and returns whether the run diverged, and the first anomaly."""
    name, kind, rate, size, normed, seed = cell
    torch.manual_seed(seed)
    network, batches, compute_loss = tables()[name]
    net, detector, losses, report = network(normed), DivergenceDetector(), [], None
    momentum = {"momentum": 0.9} if kind == "sgd" else {}
    optimizer = (torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)(net.parameters(), lr=rate, **momentum)
    for step in range(1, steps + 1):
        inputs, targets = batches(size)
        loss = compute_loss(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        )
        optimizer.step()
        losses.append(loss.item())
        anomaly = detector.update(step, {"gradient norm": norm.item(), "loss": losses[-1]})
        report = report or (anomaly and str(anomaly))
    last = statistics.median(losses[-100:])
    return not (math.isfinite(last) and last < statistics.median(losses[:32])), report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    healthy = alarms = diverged = found_count = 0
    for cell in cells(arguments.seeds):
        bad, report = train(cell, arguments.steps)
        healthy, alarms = healthy + (not bad), alarms + (not bad and report is not None)
        diverged, found_count = diverged + bad, found_count + (bad and report is not None)
        if bad or report:
            print(*cell, "diverged" if bad else "healthy", report or "no anomaly", sep="; ", flush=True)
    print(
        f"healthy: {healthy} runs of {arguments.steps} steps, {alarms} false alarms; diverged: {diverged}, "
        f"{found_count} detected"
    )


if __name__ == "__main__":
    main()

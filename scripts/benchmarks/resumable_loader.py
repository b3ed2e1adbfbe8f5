"""Measures the cost of a resumable loader relative to the DataLoader that it wraps, on the CPU.

    python scripts/benchmarks/resumable_loader.py [--rounds 15] [--samples 12800] [--images 3200] [--shuffled 1000000]

Cost per batch: iterates over samples in batches of 32 without using them. Measures CPU time, or wall time with workers.
Both loaders alternate within a round, and ratios compare times of the same round. The first round is discarded. Then
measures two latencies: the first batch of a shuffled pass, from ``iter``, and the first batch of a resume after 32% of
the batches, from ``load_state_dict``.

Images are PIL images of 28 x 28 pixels, in torchvision's MNIST with ``ToTensor`` and ``Normalize``, or in a subclass of
it. Whether the subclass draws random numbers is unknown.

Targets, without workers: at most 60 µs more per batch for tensors in memory, and a ratio of at most 1.05 for MNIST.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision import transforms
from torchvision.datasets import MNIST

from stormproof import resumable

BATCH = 32
TARGET_US, TARGET_RATIO = 60, 1.05


class Draws(Dataset):
    """Augments each sample with one number from each of the three global generators."""

    def __init__(self, samples: int) -> None:
        self.inputs = torch.zeros(samples, 16)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.inputs[index] + torch.rand(16) * random.random() * float(np.random.rand())  # noqa: NPY002


class Whole(Dataset):
    """Fetches a batch with one indexing operation, as the application's data sets do."""

    def __init__(self, samples: int, draws: bool) -> None:
        self.inputs = torch.zeros(samples, 16)
        self.draws_random_numbers = draws

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return self.inputs[torch.as_tensor(indices)]


class Stream(IterableDataset):
    """An iterable data set whose state is one number."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < self.samples:
            self.at += 1
            yield torch.zeros(16)
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def _identity_collate(batch: Any) -> Any:
    return batch


def loader(dataset: Any, **options: Any) -> DataLoader:
    return DataLoader(dataset, batch_size=BATCH, shuffle=not isinstance(dataset, IterableDataset), **options)


class CustomMNIST(MNIST):
    """A class that Stormproof does not know, so it may draw random numbers."""


def write_mnist(root: Path, samples: int) -> Path:
    """Writes random images in the format of MNIST."""
    rng = np.random.default_rng(0)
    for kind, split in itertools.product((MNIST, CustomMNIST), ("train", "t10k")):
        folder = root / kind.__name__ / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in {
            "images-idx3": rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8),
            "labels-idx1": rng.integers(0, 10, samples, dtype=np.uint8),
        }.items():
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())
    return root


def mnist(kind: type[MNIST], root: Path) -> DataLoader:
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return loader(kind(str(root), transform=transform))


def cases(samples: int, mnist_root: Path) -> dict[str, tuple[Callable[[], DataLoader], str | None]]:
    """Returns the loaders and the unit of their target, if any."""
    return {
        "TensorDataset, no workers": (lambda: loader(TensorDataset(torch.zeros(samples, 16))), "us"),
        "whole batches, declares no random numbers": (
            lambda: loader(Whole(samples, draws=False), collate_fn=_identity_collate),
            "us",
        ),
        "whole batches, may draw": (lambda: loader(Whole(samples, draws=True), collate_fn=_identity_collate), None),
        "MNIST, no workers": (lambda: mnist(MNIST, mnist_root), "ratio"),
        "subclass of MNIST, no workers": (lambda: mnist(CustomMNIST, mnist_root), None),
        "draws, no workers": (lambda: loader(Draws(samples)), None),
        "draws, 2 workers": (lambda: loader(Draws(samples), num_workers=2, persistent_workers=True), None),
        "iterable with state_dict, no workers": (lambda: loader(Stream(samples)), None),
    }


def microseconds_a_batch(batches: Any) -> float:
    clock = time.perf_counter if batches.num_workers else time.process_time
    gc.collect()
    count = 0
    start = clock()
    for _ in batches:
        count += 1
    return (clock() - start) / count * 1e6


def per_batch(rounds: int, samples: int, images: int) -> None:
    print(f"per batch of {BATCH}: {samples} samples, {images} images, shuffled, {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, target) in cases(samples, write_mnist(Path(folder), images)).items():
            plain, resumable_loader = make(), resumable(make(), seed=1)
            times = []
            for index in range(rounds + 1):
                if index % 2:
                    plain_time = microseconds_a_batch(plain)
                    times.append((plain_time, microseconds_a_batch(resumable_loader)))
                else:
                    resumable_time = microseconds_a_batch(resumable_loader)
                    times.append((microseconds_a_batch(plain), resumable_time))
            show(name, times[1:], target)


def show(name: str, times: list[tuple[float, float]], target: str | None) -> None:
    low, ratio, high = statistics.quantiles((b / a for a, b in times), n=4, method="inclusive")
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    more = statistics.median(b - a for a, b in times)
    verdict = ""
    if target is not None:
        limit, value = (TARGET_US, more) if target == "us" else (TARGET_RATIO, ratio)
        verdict = f"  target {limit}: {'reached' if value <= limit else 'MISSED'}"
    print(
        f"  {name:<38} {before:7.1f} -> {after:7.1f} us, {more:+6.1f}, x {ratio:.3f} [{low:.3f}, {high:.3f}]{verdict}"
    )


def fetch_first_batch(batches: Any) -> float:
    gc.collect()
    start = time.perf_counter()
    iterator = iter(batches)
    next(iterator)
    return (time.perf_counter() - start) * 1e3


def latencies(rounds: int, samples: int) -> None:
    dataset = TensorDataset(torch.zeros(samples))
    plain, resumable_loader = loader(dataset), resumable(loader(dataset), seed=1)
    begun = [(fetch_first_batch(plain), fetch_first_batch(resumable_loader)) for _ in range(rounds + 1)][1:]
    plain_ms, ours_ms = (statistics.median(column) for column in zip(*begun, strict=True))
    ratio = statistics.median(b / a for a, b in begun)
    print(f"first batch of {samples} shuffled samples: {plain_ms:.1f} -> {ours_ms:.1f} ms, x {ratio:.3f}")
    batches_taken = len(plain) * 32 // 100
    batches = iter(resumable_loader)
    for _ in range(batches_taken):
        next(batches)
    state = resumable_loader.state_dict()

    def resume() -> float:
        start = time.perf_counter()
        resumable_loader.load_state_dict(state)
        next(iter(resumable_loader))
        return (time.perf_counter() - start) * 1e3

    def walk() -> float:
        start = time.perf_counter()
        iterator = iter(plain)
        for _ in range(batches_taken + 1):
            next(iterator)
        return (time.perf_counter() - start) * 1e3

    both = [(walk(), resume()) for _ in range(3)]
    walk_ms, resume_ms = (statistics.median(column) for column in zip(*both, strict=True))
    print(
        f"batch {batches_taken + 1} of {len(plain)}: fetched and discarded {walk_ms:.0f} ms, resumed {resume_ms:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--samples", type=int, default=12_800, help="samples per pass, for the cost per batch")
    parser.add_argument("--images", type=int, default=3_200, help="images per pass, for the cost per batch")
    parser.add_argument("--shuffled", type=int, default=1_000_000, help="samples per pass, for the latencies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # the collections between two passes skip all imported modules
    print(f"torch {version('torch')}, {os.cpu_count()} cores, 1 used, CPU only; ratios: median [quartiles]")
    per_batch(arguments.rounds, arguments.samples, arguments.images)
    latencies(arguments.rounds, arguments.shuffled)


if __name__ == "__main__":
    main()

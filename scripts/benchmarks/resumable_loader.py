"""Measures the cost of a resumable loader relative to the DataLoader that it wraps, on the CPU.

    python scripts/benchmarks/resumable_loader.py [--rounds 15]

Cost per batch: iterates over 12,800 samples in batches of 32 without using them. Both loaders alternate within a round,
and ratios compare times of the same round. The first round is discarded. Then measures two latencies: the first batch
of a shuffled pass over 1,000,000 samples, from ``iter``, and the first batch of a resume at batch 10,000 of 31,250,
from ``load_state_dict``.

Target: at most 60 µs more per batch for tensors in memory, without workers.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stormproof import resumable

SAMPLES, BATCH, MILLION = 12_800, 32, 1_000_000
TARGET_US = 60


class Draws(Dataset):
    """Augments each sample with one number from each of the three global generators."""

    def __init__(self) -> None:
        self.inputs = torch.zeros(SAMPLES, 16)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.inputs[index] + torch.rand(16) * random.random() * float(np.random.rand())  # noqa: NPY002


class Whole(Dataset):
    """Fetches a batch with one indexing operation, as the application's data sets do."""

    def __init__(self, draws: bool) -> None:
        self.inputs = torch.zeros(SAMPLES, 16)
        self.draws_random_numbers = draws

    def __len__(self) -> int:
        return SAMPLES

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return self.inputs[torch.as_tensor(indices)]


class Stream(IterableDataset):
    """An iterable data set whose state is one number."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < SAMPLES:
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


CASES: dict[str, Callable[[], DataLoader]] = {
    "TensorDataset, no workers": lambda: loader(TensorDataset(torch.zeros(SAMPLES, 16))),
    "whole batches, declares no random numbers": lambda: loader(Whole(draws=False), collate_fn=_identity_collate),
    "whole batches, may draw": lambda: loader(Whole(draws=True), collate_fn=_identity_collate),
    "draws, no workers": lambda: loader(Draws()),
    "draws, 2 workers": lambda: loader(Draws(), num_workers=2, persistent_workers=True),
    "iterable with state_dict, no workers": lambda: loader(Stream()),
}


def microseconds_a_batch(batches: Any) -> float:
    gc.collect()
    count = 0
    start = time.perf_counter()
    for _ in batches:
        count += 1
    return (time.perf_counter() - start) / count * 1e6


def per_batch(rounds: int) -> None:
    print(f"per batch: {SAMPLES} samples in batches of {BATCH}, shuffled, {rounds} rounds")
    for name, make in CASES.items():
        plain, resumable_loader = make(), resumable(make(), seed=1)
        times = []
        for index in range(rounds + 1):
            if index % 2:
                plain_time = microseconds_a_batch(plain)
                times.append((plain_time, microseconds_a_batch(resumable_loader)))
            else:
                resumable_time = microseconds_a_batch(resumable_loader)
                times.append((microseconds_a_batch(plain), resumable_time))
        show(name, times[1:], TARGET_US if name in list(CASES)[:2] else None)


def show(name: str, times: list[tuple[float, float]], target: float | None) -> None:
    low, ratio, high = statistics.quantiles((b / a for a, b in times), n=4, method="inclusive")
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    more = statistics.median(b - a for a, b in times)
    verdict = "" if target is None else f"  target {target}: {'reached' if more <= target else 'MISSED'}"
    print(
        f"  {name:<38} {before:7.1f} -> {after:7.1f} us, {more:+6.1f}, x {ratio:.3f} [{low:.3f}, {high:.3f}]{verdict}"
    )


def fetch_first_batch(batches: Any) -> float:
    gc.collect()
    start = time.perf_counter()
    iterator = iter(batches)
    next(iterator)
    return (time.perf_counter() - start) * 1e3


def latencies(rounds: int) -> None:
    dataset = TensorDataset(torch.zeros(MILLION))
    plain, resumable_loader = loader(dataset), resumable(loader(dataset), seed=1)
    begun = [(fetch_first_batch(plain), fetch_first_batch(resumable_loader)) for _ in range(rounds + 1)][1:]
    plain_ms, ours_ms = (statistics.median(column) for column in zip(*begun, strict=True))
    ratio = statistics.median(b / a for a, b in begun)
    print(f"first batch of {MILLION} shuffled samples: {plain_ms:.1f} -> {ours_ms:.1f} ms, x {ratio:.3f}")
    batches = iter(resumable_loader)
    for _ in range(10_000):
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
        for _ in range(10_001):
            next(iterator)
        return (time.perf_counter() - start) * 1e3

    both = [(walk(), resume()) for _ in range(3)]
    walk_ms, resume_ms = (statistics.median(column) for column in zip(*both, strict=True))
    print(f"batch 10,001 of {len(plain)}: fetched and discarded {walk_ms:.0f} ms, resumed {resume_ms:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {version('torch')}, {os.cpu_count()} cores, 1 used, CPU only; ratios: median [quartiles]")
    per_batch(rounds)
    latencies(rounds)


if __name__ == "__main__":
    main()

"""Measures the time to evaluate and compare predictions, and to hash samples.

    python scripts/benchmarks/evaluation.py [--reduced]

The target for 10,000 predictions of 10 classes is 2 seconds. `--reduced` shows in seconds that the script works.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from stormproof_train.evaluation.comparison import compare
from stormproof_train.evaluation.evaluation_files import save_test_results
from stormproof_train.evaluation.prediction_store import PredictionStore, hash_samples
from stormproof_train.evaluation.predictions import Predictions

SIZES = (1_000, 10_000, 50_000)
CLASSES = 10
IMAGES = {"10,000 of 28 x 28": (10_000, 1, 28, 28), "256 of 224 x 224, color": (256, 3, 224, 224)}
REDUCED_SIZES = (100,)
REDUCED_IMAGES = {"100 of 28 x 28": (100, 1, 28, 28)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true")
    reduced = parser.parse_args().reduced
    print(f"{'samples':>8} {'':>10} {'evaluate and save':>19} {'compare':>9}   seconds")
    for samples in REDUCED_SIZES if reduced else SIZES:
        for kind in ("classes", "values"):
            tested = _tested(samples, kind)
            with TemporaryDirectory() as folder:
                saving_seconds = _seconds(save_test_results, tested, Path(folder))
                predictions = Predictions.load(Path(folder, "predictions.npz"))
            compared = _seconds(compare, predictions, predictions)
            print(f"{samples:>8,} {kind:>10} {saving_seconds:>19.2f} {compared:>9.2f}")
    for name, shape in (REDUCED_IMAGES if reduced else IMAGES).items():
        inputs = torch.randn(*shape)
        seconds = min(_seconds(hash_samples, inputs) for _ in range(5))
        print(f"hash {name}: {seconds:.3f} s, {inputs.numel() * 4 / seconds / 1e9:.2f} GB/s")


def _tested(samples: int, kind: str) -> PredictionStore:
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(samples, 4)).astype(np.float32))
    if kind == "values":
        tested, target = PredictionStore("values"), inputs[:, :1]
        outputs = target + 0.1 * torch.from_numpy(rng.normal(size=(samples, 1)).astype(np.float32))
    else:
        tested, target = PredictionStore("probabilities"), torch.from_numpy(rng.integers(0, CLASSES, samples))
        logits = torch.from_numpy(rng.normal(size=(samples, CLASSES)).astype(np.float32))
        outputs = (logits + 3 * torch.eye(CLASSES)[target]).softmax(1)
    tested.append(inputs, outputs, target)
    tested.gather(loader=None)
    return tested


def _seconds(work: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

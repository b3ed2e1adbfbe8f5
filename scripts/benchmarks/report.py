"""Measures the duration and size of reports for different numbers of steps.

    python scripts/benchmarks/report.py [--layers 20] [--samples 10000] [--reduced]

Generates run folders of 1,000, 10,000 and 100,000 steps with the metrics of all default callbacks, two attempts and
test predictions. Runs the command ``report`` on each in a subprocess. Prints its wall time and CPU time, including the
start of Python and all imports, and the size of the page. A first call fills the cache of Vega's script and is
discarded. The targets for 100,000 steps with 20 layers are 5 seconds and 3 MB. `--reduced` shows in seconds that the
script works, with one call for 1,000 steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.run.metrics_rows import COLUMNS

SIZES = [(1_000, 10), (10_000, 10), (100_000, 10), (100_000, 1)]
"""Number of steps and logging interval in steps."""
REDUCED_SIZES = [(1_000, 10)]
VALIDATION = 500


def rows(steps: int, every: int, layers: int) -> Iterator[str]:
    drawn = np.random.default_rng(0)
    names = ["train/loss", "optimizer/lr", "time/batch_seconds", "time/data_wait_fraction", "gradients/norm"]
    names += [f"{group}/network.{layer}" for group in ("gradients/norm", "updates/ratio") for layer in range(layers)]
    units = ("units/dead_fraction", "units/silent_fraction", "units/sparsity")
    validated = [
        "val/loss",
        "val/accuracy",
        *(f"{group}/network.{layer}" for group in units for layer in range(layers)),
    ]
    for step in range(every - 1, steps, every):
        logged = names + (validated if step % VALIDATION == VALIDATION - 1 else [])
        attempt = 1 + (step > steps // 2)
        for name, value in zip(logged, drawn.lognormal(-step / steps, 0.3, len(logged)).tolist(), strict=True):
            yield f"{attempt},{step},{step // VALIDATION},{1.7e9 + step / 100:.3f},{name},{value!r}\n"


def write_run(folder: Path, steps: int, every: int, layers: int, samples: int) -> int:
    """Writes a run folder and returns the number of rows in its metrics.csv."""
    folder.mkdir()
    halves = [(0, steps // 2), (steps // 2, steps)]
    attempts = [
        {"number": index, "first_step": first, "last_step": last, "accumulated": 1}
        for index, (first, last) in enumerate(halves, start=1)
    ]
    record = {"name": folder.name, "status": "finished", "attempts": attempts, "changed": [], "id": "0", "identity": ""}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump({"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01}}))
    count = 0
    with (folder / "metrics.csv").open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        for row in rows(steps, every, layers):
            file.write(row)
            count += 1
    drawn = np.random.default_rng(0)
    target = drawn.integers(10, size=samples)
    scores = drawn.random((samples, 10)) + np.eye(10)[target]
    predictions = Predictions("probabilities", scores / scores.sum(1, keepdims=True), target)
    predictions.save(folder / "predictions.npz")
    (folder / "evaluation.json").write_text(json.dumps(evaluate(predictions)))
    score = {"accuracy": 0.9}
    summary = {
        "headline": "accuracy",
        "test": score,
        "validation": score,
        "parameters": 1,
        "steps": steps,
        "seconds": 1.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return count


def timed(folder: Path) -> tuple[float, float]:
    """Returns the wall time and the CPU time of the command in seconds."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "stormproof_train", "report", folder], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return time.perf_counter() - start, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--reduced", action="store_true")
    arguments = parser.parse_args()
    print("| steps | logged | rows | metrics.csv | wall time | CPU time | page |\n|" + " --- |" * 7)
    with TemporaryDirectory() as directory:
        for steps, every in REDUCED_SIZES if arguments.reduced else SIZES:
            folder = Path(directory) / f"{steps}-{every}"
            count = write_run(folder, steps, every, arguments.layers, arguments.samples)
            if not arguments.reduced:
                timed(folder)
            calls = [timed(folder) for _ in range(1 if arguments.reduced else 2)]
            wall, used = map(min, zip(*calls, strict=True))
            file, page = ((folder / name).stat().st_size / 1e6 for name in ("metrics.csv", "report.html"))
            row = (f"{steps:,}", f"every {every}", f"{count:,}", f"{file:.1f} MB", f"{wall:.1f} s", f"{used:.1f} s")
            print(f"| {' | '.join(row)} | {page:.2f} MB |", flush=True)


if __name__ == "__main__":
    main()

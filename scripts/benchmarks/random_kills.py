"""Kills one training at random times until it has finished, and compares it with one that was left alone.

    python scripts/benchmarks/random_kills.py [--kills 200] [--seed 1] [--ranks 1] [--workers 0] [--epochs 10]

The killer is another process. An attempt is killed after a random time; the next goes on from what it left, in the same
folder. Once the kills are used up, the last attempt runs to the end. Prints one line, which counts the attempts that
committed apart: some are killed too early.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.drill import assert_same, attempt  # noqa: E402 (tests/ is not installed)
from tests.support.training import Cell  # noqa: E402 (as above)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10, help="of 100 batches over all ranks")
    parser.add_argument("--longest", type=float, default=0.35, help="seconds until an attempt is killed, at most")
    given = parser.parse_args()
    cell = Cell(given.workers, ranks=given.ranks, every=3, validate_every=4, samples=400, epochs=given.epochs)
    options = {"stopping": {"patience": 10**6}}
    times, began = random.Random(given.seed), time.monotonic()
    kills = attempts = advanced = 0
    done, newest = None, ""
    with TemporaryDirectory() as folder:
        while done is None or done.results is None:
            limit = times.uniform(0, given.longest) if kills < given.kills else 600.0
            done = attempt(cell, Path(folder, "killed"), kill_after=limit, **options)
            attempts += 1
            kills += done.killed
            left = max((file.name for file in Path(folder, "killed", "checkpoints").glob("[0-9]*.json")), default="")
            advanced, newest = advanced + (left > newest), max(left, newest)
            if not done.killed and done.results is None:
                sys.exit(f"attempt {attempts} failed: {done.output}")
        if kills < given.kills:
            sys.exit(f"it had finished after {kills} kills: give it more --epochs")
        seconds = time.monotonic() - began
        assert_same(done, attempt(cell, Path(folder, "whole"), kill_after=600.0, **options))
    steps = done.results[0]["step"]
    print(
        f"{kills} kills, {attempts} attempts, {advanced} of which committed, {steps} steps, {seconds:.0f} s: weights "
        "and all else equal to the uninterrupted run's, to the last bit"
    )


if __name__ == "__main__":
    main()

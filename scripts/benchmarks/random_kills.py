"""Kills one training at random times until it has finished, and compares it with one that was left alone.

    python scripts/benchmarks/random_kills.py [--kills 200] [--seed 1] [--ranks 1] [--workers 0] [--epochs 10]
    python scripts/benchmarks/random_kills.py --matrix 300 [--seed 1]

The killer is another process. An attempt is killed after a random time. The next one resumes in the same folder. Once
the kills are used up, the last attempt runs to the end. Prints one line, which counts the attempts that committed
separately: some are killed too early.

With ``--matrix``, each run combines other features (``kill_matrix.py``), is killed twice, and is compared with a run
that is not killed: exact, warned (something differs, and a warning named it), SILENT (something differs without a
warning) or refused (one sentence before training).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.benchmarks.kill_matrix import FEATURES, Spec, draw, train  # noqa: E402 (tests/ is not installed)
from tests.support.difference import differences  # noqa: E402 (as above)
from tests.support.drill import assert_same, attempt  # noqa: E402 (as above)
from tests.support.training import Cell  # noqa: E402 (as above)

KILLS, MAX_SECONDS = 2, 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10, help="of 100 batches over all ranks")
    parser.add_argument("--matrix", type=int, metavar="RUNS", help="runs that combine features")
    parser.add_argument("--longest", type=float, default=0.35, help="seconds until an attempt is killed, at most")
    given = parser.parse_args()
    if given.matrix:
        matrix(given.matrix, given.seed)
        return
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


def matrix(runs: int, seed: int) -> None:
    """Prints the verdict of each run that is not exact, and a table of all. Exits with 1 if any is silent."""
    rng, began = random.Random(seed), time.monotonic()
    verdicts: Counter[str] = Counter()
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    while sum(verdicts.values()) < runs:
        spec = draw(rng)
        with TemporaryDirectory() as folder:
            verdict, what = judge(spec, Path(folder), rng)
        if verdict is None:
            continue
        verdicts[verdict] += 1
        for group in FEATURES:
            kinds[f"{group} {getattr(spec, group)}"][verdict] += 1
        if verdict != "exact":
            print(f"{verdict}: {spec}: {what}", flush=True)
    print(f"{runs} killed runs in {time.monotonic() - began:.0f} s, {len(kinds)} kinds of features: {dict(verdicts)}")
    for kind, counts in sorted(kinds.items()):
        print(f"  {kind}: {dict(counts)}")
    if verdicts["SILENT"] or verdicts["failed"]:
        sys.exit(1)


def judge(spec: Spec, folder: Path, rng: random.Random) -> tuple[str | None, str]:
    """Trains a combination twice, once with kills.

    Returns the verdict and details. The verdict is None if no kill occurred after the first checkpoint.
    """
    begun = time.monotonic()
    whole = attempt(spec, folder / "whole", kill_after=MAX_SECONDS, function=train)
    seconds = time.monotonic() - begun
    if whole.results is None:
        return ("refused" if "NotResumableError" in whole.output else "failed"), whole.output[-300:]
    killed, output, hits = folder / "killed", whole.output, 0
    for _ in range(KILLS):
        done = attempt(spec, killed, kill_after=rng.uniform(0.2, 1) * seconds, function=train)
        output += done.output
        if done.results is not None:
            break
        if not done.killed:
            return "failed", done.output[-300:]
        hits += any((killed / "checkpoints").glob("[0-9]*.json"))
    else:
        done = attempt(spec, killed, kill_after=MAX_SECONDS, function=train)
        output += done.output
    if done.results is None:
        return "failed", done.output[-300:]
    if not hits:
        return None, ""
    pairs = list(zip(whole.results, done.results, strict=True))
    for one, other in pairs:
        if other["schedules"] is None:
            one["schedules"] = None
    found = [place for pair in pairs for place in differences(*pair)]
    if not found:
        return "exact", ""
    warned = [line for line in output.splitlines() if "exact" in line]
    return ("warned", warned[0][:200]) if warned else ("SILENT", "; ".join(place[:80] for place in found[:3]))


if __name__ == "__main__":
    main()

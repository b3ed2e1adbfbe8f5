"""Kills a training run at random times until it has finished, and compares it with an uninterrupted run.

    python scripts/benchmarks/random_kills.py [--kills 200] [--seed 1] [--ranks 1] [--workers 0] [--epochs 10]
    python scripts/benchmarks/random_kills.py --object-store --longest 1.5
    python scripts/benchmarks/random_kills.py --sharded --ranks 2 --longest 3
    python scripts/benchmarks/random_kills.py --matrix 300 [--seed 1]

Another process kills each attempt after a random time. The next attempt resumes in the same folder. After the last
kill, an attempt runs to the end. Prints one line. It counts the attempts that committed a checkpoint separately,
because some are killed too early.

With ``--object-store``, the checkpoints are in an emulator of S3 on this machine, and each attempt has an empty
temporary folder, as on another node.

With ``--sharded``, parameters are sharded over the ranks (FSDP2), and each rank writes its part.

With ``--matrix``, each run combines different features (``kill_matrix.py``), is killed twice, and is compared with an
uninterrupted run. The verdicts are exact, warned (something differs, and a warning named it), SILENT (something differs
without a warning) and refused (with an error before training).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from stormproof.checkpoint.storage import ObjectStorage

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.benchmarks.kill_matrix import FEATURES, Spec, draw, train  # noqa: E402 (tests/ is not installed)
from tests.support.difference import find_differences  # noqa: E402 (as above)
from tests.support.exact_resume_training import Cell  # noqa: E402 (as above)
from tests.support.forked_attempts import assert_bitwise_equal, run_attempt  # noqa: E402 (as above)
from tests.support.object_stores import run_s3_server  # noqa: E402 (as above)

KILLS, MAX_SECONDS = 2, 120.0


def _count_attempts_with_commits(url: str) -> int:
    """Returns the number of attempts in the log that are followed by a commit."""
    storage = ObjectStorage(url)
    log = b"".join(storage.read(f"log/{entry.name}") for entry in sorted(storage.list("log"), key=lambda e: e.name))
    kinds = [json.loads(line)["event"] for line in log.splitlines()]
    kinds = [kind for kind in kinds if kind in {"attempt", "committed"}]
    return sum(pair == ("attempt", "committed") for pair in pairwise(kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10, help="epochs of 100 batches over all ranks")
    parser.add_argument("--matrix", type=int, metavar="RUNS", help="runs that combine features")
    parser.add_argument("--longest", type=float, default=0.35, help="maximum seconds until an attempt is killed")
    parser.add_argument("--object-store", action="store_true", help="keep checkpoints in an emulator of S3")
    parser.add_argument("--sharded", action="store_true", help="save sharded checkpoints")
    arguments = parser.parse_args()
    if arguments.matrix:
        matrix(arguments.matrix, arguments.seed)
        return
    cell = Cell(
        arguments.workers,
        ranks=arguments.ranks,
        every_n_train_steps=3,
        validate_every=4,
        samples=400,
        epochs=arguments.epochs,
        sharded=arguments.sharded,
        saves_shards=arguments.sharded,
    )
    options = {"stopping": {"patience": 10**6}}
    times, start = random.Random(arguments.seed), time.monotonic()
    kills = attempts = advanced = 0
    outcome, newest = None, ""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        killed_options = dict(options)
        if arguments.object_store:
            server = stack.enter_context(run_s3_server())
            os.environ |= server.environment()
            killed_options["recovery"] = {"dirpath": f"s3://{server.make_bucket()}/run"}
        while outcome is None or outcome.results is None:
            limit = times.uniform(0, arguments.longest) if kills < arguments.kills else 600.0
            outcome = run_attempt(cell, Path(folder, "killed"), kill_after=limit, **killed_options)
            attempts += 1
            kills += outcome.was_killed
            left = max((file.name for file in Path(folder, "killed", "checkpoints").glob("[0-9]*.json")), default="")
            advanced, newest = advanced + (left > newest), max(left, newest)
            if not outcome.was_killed and outcome.results is None:
                sys.exit(f"attempt {attempts} failed: {outcome.output}")
        if kills < arguments.kills:
            sys.exit(f"The run finished after {kills} kills. Increase --epochs.")
        seconds = time.monotonic() - start
        assert_bitwise_equal(outcome, run_attempt(cell, Path(folder, "whole"), kill_after=600.0, **options))
        if arguments.object_store:  # not before: a process that used an object store cannot fork others that use it
            advanced = _count_attempts_with_commits(killed_options["recovery"]["dirpath"])
    steps = outcome.results[0]["step"]
    print(
        f"{kills} kills, {attempts} attempts, {advanced} of which committed, {steps} steps, {seconds:.0f} s: weights "
        "and all other results are bit-identical to the uninterrupted run"
    )


def matrix(runs: int, seed: int) -> None:
    """Prints the verdict of each run that is not exact, and a table of all. Exits with 1 if any is silent."""
    rng, start = random.Random(seed), time.monotonic()
    verdicts: Counter[str] = Counter()
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    while sum(verdicts.values()) < runs:
        spec = draw(rng)
        with TemporaryDirectory() as folder:
            verdict, description = judge(spec, Path(folder), rng)
        if verdict is None:
            continue
        verdicts[verdict] += 1
        for group in FEATURES:
            kinds[f"{group} {getattr(spec, group)}"][verdict] += 1
        if verdict != "exact":
            print(f"{verdict}: {spec}: {description}", flush=True)
    print(f"{runs} killed runs in {time.monotonic() - start:.0f} s, {len(kinds)} kinds of features: {dict(verdicts)}")
    for kind, counts in sorted(kinds.items()):
        print(f"  {kind}: {dict(counts)}")
    if verdicts["SILENT"] or verdicts["failed"]:
        sys.exit(1)


def judge(spec: Spec, folder: Path, rng: random.Random) -> tuple[str | None, str]:
    """Trains a combination twice, once with kills.

    Returns the verdict and details. The verdict is None if no kill occurred after the first checkpoint.
    """
    start = time.monotonic()
    whole = run_attempt(spec, folder / "whole", kill_after=MAX_SECONDS, function=train)
    seconds = time.monotonic() - start
    if whole.results is None:
        return ("refused" if "NotResumableError" in whole.output else "failed"), whole.output[-300:]
    killed, output, hits = folder / "killed", whole.output, 0
    for _ in range(KILLS):
        outcome = run_attempt(spec, killed, kill_after=rng.uniform(0.2, 1) * seconds, function=train)
        output += outcome.output
        if outcome.results is not None:
            break
        if not outcome.was_killed:
            return "failed", outcome.output[-300:]
        hits += any((killed / "checkpoints").glob("[0-9]*.json"))
    else:
        outcome = run_attempt(spec, killed, kill_after=MAX_SECONDS, function=train)
        output += outcome.output
    if outcome.results is None:
        return "failed", outcome.output[-300:]
    if not hits:
        return None, ""
    pairs = list(zip(whole.results, outcome.results, strict=True))
    for first, second in pairs:
        if second["schedules"] is None:
            first["schedules"] = None
    differences_found = [position for pair in pairs for position in find_differences(*pair)]
    if not differences_found:
        return "exact", ""
    warned = [line for line in output.splitlines() if "exact" in line]
    return (
        ("warned", warned[0][:200])
        if warned
        else ("SILENT", "; ".join(position[:80] for position in differences_found[:3]))
    )


if __name__ == "__main__":
    main()

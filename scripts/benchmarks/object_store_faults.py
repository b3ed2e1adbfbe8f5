"""Counts lost commits when two threads compete for a prefix, and when the network fails during training.

    python scripts/benchmarks/object_store_faults.py races [--count 200] [--seed 0]
    python scripts/benchmarks/object_store_faults.py faults [--count 500] [--seed 0] [--mirror]

The object store is an emulator of S3 (``moto``) in a process on this machine.

- ``races``: two threads repeatedly take the prefix from each other, because every lease counts as expired. Each attempt
  commits up to four checkpoints. Every commit that returned must still exist unchanged, and no attempt number or
  sequence number may occur twice.
- ``faults``: a run saves after every step to an object store, or to a folder with a mirror. A proxy injects faults into
  10% of the requests until the count is reached. Training must reach its last step, and the newest checkpoint must be
  of that step.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Store
from stormproof.checkpoint.lease import Owner
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.errors import FolderLostError, FolderTakenError, RanksDisagreeError
from tests.support.checkpoint_files import commit_checkpoint
from tests.support.fault_proxy import FaultProxy, choose_at_random
from tests.support.object_stores import S3Server, run_s3_server
from tests.support.recovery_fits import fit_with_recovery


class Race:
    """Two threads that take a prefix from each other.

    Args:
        url: URL of an empty prefix.
        count: Number of attempts to start.

    Attributes:
        committed: Digests of the commits that returned, by name.
        attempts: Numbers of the attempts that began.
        outcomes: Number of attempts per outcome.
        problems: Descriptions of lost commits and of numbers that were used twice.
    """

    def __init__(self, url: str, count: int) -> None:
        self.committed: dict[str, str] = {}
        self.attempts: list[int] = []
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []
        self._url, self._remaining = url, count
        self._lock = threading.Lock()

    def measure_attempt(self) -> float:
        """Returns the seconds of an attempt with one commit, without another attempt."""
        start = time.perf_counter()
        self._run_attempt(1)
        return time.perf_counter() - start

    def run(self, seed: int, pause: float) -> None:
        """Starts attempts until the count is reached. Waits for up to ``pause`` seconds before each one."""
        generator = random.Random(seed)
        while self._take_turn():
            time.sleep(generator.uniform(0, pause))
            try:
                self._run_attempt(generator.randint(1, 4))
                outcome = "finished"
            except (FolderLostError, FolderTakenError, RanksDisagreeError) as error:
                outcome = type(error).__name__
            with self._lock:
                self.outcomes[outcome] += 1

    def check(self) -> None:
        """Compares the object store with the commits that returned."""
        store = Store(self._url)
        resolution = store.resolve(verify_all=True)
        digests = {checkpoint.name: checkpoint.digest for checkpoint in store.read_checkpoints()}
        lost = {name for name, digest in self.committed.items() if digests.get(name) != digest}
        self.problems += [f"lost or changed: {name}" for name in sorted(lost)]
        self.problems += [f"bad: {bad.name}, {bad.reason}" for bad in resolution.bad_checkpoints]
        self.problems += [f"lost: {name}" for name in resolution.lost_names]
        if len({name[:6] for name in self.committed}) != len(self.committed):
            self.problems.append("a sequence number was used twice")
        if len({*self.attempts}) != len(self.attempts):
            self.problems.append("an attempt number was used twice")

    def _take_turn(self) -> bool:
        with self._lock:
            self._remaining -= 1
            return self._remaining >= 0

    def _run_attempt(self, commits: int) -> None:
        store = Store(self._url)
        lease = store.acquire_lease()
        try:
            attempt = store.begin_attempt(store.resolve())
            self.attempts.append(attempt)
            for step in range(10, 10 * commits + 10, 10):
                checkpoint = commit_checkpoint(store, step, attempt=attempt, fence=lease.check)
                with self._lock:
                    if checkpoint.name in self.committed:
                        self.problems.append(f"committed twice: {checkpoint.name}")
                    self.committed[checkpoint.name] = checkpoint.digest
        finally:
            lease.release()


def run_races(server: S3Server, count: int, seed: int) -> list[str]:
    Owner.is_running = lambda _: False  # every lease counts as expired
    race = Race(f"s3://{server.make_bucket()}/run", count)
    pause = 4 * race.measure_attempt()  # so that some attempts commit
    threads = [threading.Thread(target=race.run, args=(seed + number, pause)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    race.check()
    outcomes = ", ".join(f"{name} {number}" for name, number in race.outcomes.most_common())
    print(f"{count} attempts of two threads ({outcomes}), {len(race.committed)} commits")
    return race.problems


def run_faults(server: S3Server, count: int, seed: int, *, has_mirror: bool) -> list[str]:
    url = f"s3://{server.make_bucket()}/run"
    problems: list[str] = []
    steps = 0
    with tempfile.TemporaryDirectory() as folder, FaultProxy(server.port) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        proxy.choose = choose_at_random(seed, 0.1)
        epochs = 0
        while len(proxy.faults) < count:
            epochs += 4
            recovery = CheckpointRecovery(
                folder if has_mirror else url, every_n_train_steps=1, mirror=url if has_mirror else None
            )
            trainer = fit_with_recovery(recovery, max_epochs=epochs)
            if trainer.global_step != 6 * epochs:
                problems.append(f"training ended at step {trainer.global_step} of {6 * epochs}")
            steps = trainer.global_step
        faults = ", ".join(f"{name} {number}" for name, number in Counter(proxy.faults).most_common())
        print(f"{len(proxy.faults)} faults ({faults}), {len(proxy.requests)} requests, {steps} steps")
    os.environ["AWS_ENDPOINT_URL"] = server.endpoint
    resolution = Store(ObjectStorage(url)).resolve(verify_all=True)
    newest = resolution.chosen_checkpoint
    if newest is None or newest.step != steps:
        problems.append(f"the newest checkpoint is {newest and newest.name}, not of step {steps}")
    problems += [f"bad: {bad.name}, {bad.reason}" for bad in resolution.bad_checkpoints]
    problems += [f"lost: {name}" for name in resolution.lost_names]
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["races", "faults"])
    parser.add_argument("--count", type=int, help="attempts (default: 200) or faults (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mirror", action="store_true", help="train with a folder and a mirror")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    start = time.perf_counter()
    with run_s3_server() as server:
        os.environ |= server.environment()
        if arguments.kind == "races":
            problems = run_races(server, arguments.count or 200, arguments.seed)
        else:
            problems = run_faults(server, arguments.count or 500, arguments.seed, has_mirror=arguments.mirror)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems, {time.perf_counter() - start:.0f} s")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

"""Strikes a training under torchrun with random faults until it has finished, and compares it with one left alone.

    python scripts/drill.py [--faults 20] [--kinds kill term pause torn flip full nan spike] [--seed 0]
        [--nproc-per-node 1] [--folder DIR] -- COMMAND …

COMMAND is what torchrun is to run; ``{folder}`` in its words becomes the folder of a run, below which it keeps its
checkpoints. It must save every so many steps, not minutes: else it is not decided what the weights have to be. For
example this project's own application, after ``pip install -e ".[train]"``:

    python scripts/drill.py --faults 40 -- train.py runs_dir={folder} name=run logger=none trainer.max_epochs=60 \\
        callbacks.recovery.every_n_train_steps=25 callbacks.divergence_guard.max_rollbacks=1000 \\
        callbacks.faults._target_=stormproof.testing.faults_from_environment max_restarts_without_progress=null

Each fault waits for a step of its own, drawn at random:

- kill: SIGKILL to a random rank; term: SIGTERM to torchrun, as a scheduler sends it;
- pause: SIGSTOP to a random rank, SIGCONT some seconds later;
- torn, flip: SIGKILL to all, and the newest checkpoint has lost its second half, or a bit of it has changed, once there
  is another one;
- full: for some seconds no file of rank 0 may grow beyond half a checkpoint (a soft limit, as on a full disk);
- nan, spike: a batch of NaN, or a thousand times as large. These are of the data, as in the run that is left alone;
  they need ``stormproof.testing.faults_from_environment`` among the callbacks, and ``DivergenceGuard``.

Prints the faults survived, the steps done again, the seconds from a death until training went on, the share of the time
that training would have taken by itself, and whether weights and optimizers are the same to the last bit. Ends with 1
if they are not, if the run stood still for two minutes, or ended by what was no fault of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from stormproof.checkpoint import Store
from stormproof.checkpoint.folder_ownership import REACHED
from stormproof.checkpoint.progress_file import Reached, read_reached
from stormproof.testing import flip_bit, tear

KINDS = ("kill", "term", "pause", "torn", "flip", "full", "nan", "spike")
OF_THE_DATA = {"nan", "spike"}
STANDS_STILL = 120.0  # seconds
END_SECONDS = 10.0
"""After a full disk, in which a training that came to its end meanwhile ends with an error: the end must be saved."""


@dataclass
class Run:
    """A folder in which a command is started again and again."""

    folder: Path
    command: list[str]
    ranks: int
    environment: dict[str, str]
    process: psutil.Popen | None = None
    lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    died: float | None = None
    checkpoints: Store | None = None

    def start(self) -> None:
        words = [word.replace("{folder}", str(self.folder)) for word in self.command]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        with (self.folder / "output.txt").open("ab") as output:
            self.process = psutil.Popen(
                [*launch, *words], env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def ended(self) -> int | None:
        """The exit code, if it has ended."""
        assert self.process is not None
        return self.process.poll()

    def workers(self) -> list[psutil.Process]:
        """The ranks, by rank."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.process.children()
        return []

    def kill_all(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            everyone = [self.process, *self.process.children(recursive=True)]
            for each in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(everyone, timeout=30)

    def store(self) -> Store | None:
        if self.checkpoints is None:
            found = next(self.folder.rglob("commits.log"), None)
            self.checkpoints = None if found is None else Store(found.parent)
        return self.checkpoints

    def reached(self) -> Reached | None:
        store = self.store()
        return None if store is None else read_reached(store.folder / REACHED)

    def count_loss(self) -> None:
        """After a death: what is done again."""
        store, reached = self.store(), self.reached()
        self.died = time.time()
        if store is not None and reached is not None:
            chosen = store.resolve().chosen
            self.lost.append(max(0, reached.step - (chosen.step if chosen else 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where both runs are kept; by default nowhere")
    parser.add_argument("command", nargs="+")
    words = parser.parse_args()
    if words.faults < 1 or words.nproc_per_node < 1:
        parser.error("--faults and --nproc-per-node must be at least 1")
    if words.folder and words.folder.exists():
        parser.error(f"--folder {words.folder} is there already: name another, or remove it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left running
    drawn = random.Random(words.seed)
    kinds = [words.kinds[number % len(words.kinds)] for number in range(words.faults)]
    with contextlib.ExitStack() as stack:
        folder = words.folder or Path(stack.enter_context(TemporaryDirectory()))
        whole, struck = ((folder / name).absolute() for name in ("whole", "struck"))
        for each in (whole, struck):
            each.mkdir(parents=True, exist_ok=False)
        runs = [Run(each, words.command, words.nproc_per_node, {}) for each in (whole, struck)]
        stack.callback(lambda: [run.kill_all() for run in runs])
        print("left alone …", flush=True)
        began = time.monotonic()
        _to_the_end(runs[0])
        untouched = _last(runs[0])
        steps = untouched["global_step"]
        if steps < 2:
            sys.exit(f"the run ended with step {steps}: there is no step in between for a fault")
        plan = sorted((drawn.randrange(1, steps), kind) for kind in kinds)
        data = [f"{kind}:{step}" for step, kind in plan if kind in OF_THE_DATA]
        if data:
            print(f"left alone, with {len(data)} faults of the data …", flush=True)
            runs[0] = Run((folder / "whole with faults").absolute(), words.command, words.nproc_per_node, {})
            runs[0].folder.mkdir()
            for run in (runs[0], runs[1]):
                run.environment = {"STORMPROOF_FAULTS": " ".join(data)}
            began = time.monotonic()
            _to_the_end(runs[0])
            if _same(untouched, _last(runs[0])):
                sys.exit(
                    "No nan or spike fault occurred. Add stormproof.testing.faults_from_environment to the callbacks, "
                    "or omit nan and spike from --kinds."
                )
        alone = time.monotonic() - began
        print(f"struck by {len(plan) - len(data)} more …", flush=True)
        began = time.monotonic()
        left = _strike(runs[1], [(step, kind) for step, kind in plan if kind not in OF_THE_DATA], drawn)
        took = time.monotonic() - began
        same = _same(_last(runs[0]), _last(runs[1]))
        _report(runs[1], Counter(kinds) - left, steps, alone, took, same)
    sys.exit(not same)


def _to_the_end(run: Run) -> None:
    run.start()
    code = run.process.wait() if run.process else 1
    if code:
        sys.exit(f"the command ended with {code} though nothing struck it: {_tail(run)}")


def _strike(run: Run, plan: list[tuple[int, str]], drawn: random.Random) -> Counter[str]:
    """Starts the run until it has finished, and has each fault strike at its step; returns those that came too late.

    A strike returns for how many seconds an end is excused by it.
    """
    run.start()
    excused_until, moved = 0.0, time.monotonic()
    last: Reached | None = None
    while True:
        code = run.ended()
        if code == 0:
            return Counter(kind for _, kind in plan)
        if code is not None:
            if time.monotonic() > excused_until:
                sys.exit(f"the command ended with {code} though nothing struck it: {_tail(run)}")
            run.count_loss()
            run.start()
            excused_until, moved = 0.0, time.monotonic()
        reached = run.reached()
        if reached is not None and reached != last:
            if run.died is not None and reached.time > run.died:
                run.seconds.append(reached.time - run.died)
                run.died = None
            last, moved = reached, time.monotonic()
        if time.monotonic() - moved > STANDS_STILL:
            sys.exit(f"the run stands still at step {last.step if last else 0}: {_tail(run)}")
        alive = run.died is None and excused_until < math.inf  # else it must get there first
        if plan and alive and reached is not None and reached.step >= plan[0][0] and _can(run, plan[0][1]):
            try:
                excused_until = time.monotonic() + _STRIKES[plan[0][1]](run, drawn)
                plan.pop(0)
            except (IndexError, psutil.NoSuchProcess, ProcessLookupError):
                time.sleep(0.1)  # there is nobody to strike: it has just ended, or is about to
            moved = time.monotonic()
        time.sleep(0.005)


def _can(run: Run, kind: str) -> bool:
    """Whether there is something to strike: of a single checkpoint nothing would be left to go on from."""
    store = run.store()
    return kind not in {"torn", "flip"} or (store is not None and len(store.checkpoints()) > 1)


def _kill(run: Run, drawn: random.Random) -> float:
    drawn.choice(run.workers()).kill()
    return math.inf


def _term(run: Run, _: random.Random) -> float:
    assert run.process is not None
    run.process.terminate()
    return math.inf


def _pause(run: Run, drawn: random.Random) -> float:
    worker = drawn.choice(run.workers())
    worker.suspend()
    time.sleep(drawn.uniform(0.1, 3.0))
    worker.resume()
    return 0.0


def _torn(run: Run, _: random.Random) -> float:
    run.kill_all()
    tear(_newest(run))
    return math.inf


def _flip(run: Run, drawn: random.Random) -> float:
    run.kill_all()
    newest = _newest(run)
    flip_bit(newest, drawn.randrange(8 * newest.stat().st_size))
    return math.inf


def _full(run: Run, drawn: random.Random) -> float:
    pid, size = run.workers()[0].pid, _newest(run).stat().st_size // 2
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    time.sleep(drawn.uniform(0.1, 3.0))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    return END_SECONDS


_STRIKES = {"kill": _kill, "term": _term, "pause": _pause, "torn": _torn, "flip": _flip, "full": _full}


def _newest(run: Run) -> Path:
    store = run.store()
    assert store is not None
    return max((each.path for each in store.checkpoints()), key=lambda path: path.name)


def _last(run: Run) -> dict:
    store = run.store()
    latest = None if store is None else store.latest()
    if latest is None:
        sys.exit(
            f"no checkpoint of CheckpointRecovery is below {run.folder}: put {{folder}} into the command, and a "
            "CheckpointRecovery among the callbacks"
        )
    return torch.load(latest.path, map_location="cpu", weights_only=True)


def _same(one: dict, other: dict) -> bool:
    return one["global_step"] == other["global_step"] and all(
        _equal(one[part], other[part]) for part in ("state_dict", "optimizer_states", "lr_schedulers")
    )


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        bits = [each.contiguous().flatten().view(torch.uint8) for each in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def _report(run: Run, kinds: Counter[str], steps: int, alone: float, took: float, same: bool) -> None:
    print(f"\n{sum(kinds.values())} faults survived: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    print(f"{len(run.lost)} restarts, {sum(run.lost)} steps done again of {steps}")
    if run.seconds:
        middle, longest = statistics.median(run.seconds), max(run.seconds)
        print(f"from a death until training went on: {middle:.1f} s, at most {longest:.1f} s")
    if alone:
        print(f"effective training time ratio: {alone / took:.2f} ({alone:.0f} s left alone, {took:.0f} s struck)")
    print(f"weights and optimizers: {'the same, to the last bit' if same else 'NOT THE SAME'}")


def _tail(run: Run) -> str:
    return "\n" + (run.folder / "output.txt").read_text(errors="replace")[-2000:]


if __name__ == "__main__":
    main()

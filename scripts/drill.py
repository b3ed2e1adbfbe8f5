"""Injects random faults into a command under torchrun and compares the result with an undisturbed run.

    python scripts/drill.py [--faults 20] [--kinds kill term pause torn flip full nan spike] [--seed 0]
        [--nproc-per-node 1] [--folder DIR] -- COMMAND …

COMMAND is the script and its arguments. ``{folder}`` in them is replaced by the folder of a run, which must contain the
checkpoints. The command must save every n steps, not after a time: otherwise the weights depend on the timing. An
example with this project's application, after ``pip install -e ".[train]"``:

    python scripts/drill.py --faults 40 -- train.py runs_dir={folder} name=run logger=none trainer.max_epochs=60 \\
        callbacks.recovery.every_n_train_steps=25 callbacks.divergence_guard.max_rollbacks=1000 \\
        callbacks.faults._target_=stormproof.testing.faults_from_environment max_restarts_without_progress=null

Each fault is injected at a random step:

- kill: SIGKILL to a random rank.
- term: SIGTERM to torchrun, as a scheduler sends it.
- pause: SIGSTOP to a random rank, and SIGCONT up to 3 seconds later.
- torn, flip: SIGKILL to all ranks. Then the newest checkpoint is truncated to half its size, or one of its bits is
  flipped. Waits until there are two checkpoints.
- full: for up to 3 seconds, files of rank 0 cannot grow beyond half a checkpoint (a soft limit, like a full disk).
- nan, spike: a batch of NaN, or a batch multiplied by 1,000. The undisturbed run receives these faults too. They
  require the callbacks ``stormproof.testing.faults_from_environment`` and ``DivergenceGuard``.

Prints the number of faults survived, the steps repeated, and the seconds between an exit and the next new step. Then
prints the ratio of the undisturbed time to the time with faults, and whether weights and optimizers are bit-identical.
Exits with 1 if they are not, if the run makes no progress for two minutes, or if it ends without an injected fault.
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
from stormproof.checkpoint.progress_file import PROGRESS_FILE_NAME, Progress, read_progress
from stormproof.testing import flip_bit, truncate_file

KINDS = ("kill", "term", "pause", "torn", "flip", "full", "nan", "spike")
DATA_FAULTS = {"nan", "spike"}
STALL_SECONDS = 120.0
END_SECONDS = 10.0
"""Time after a full disk in which an error is accepted. The command fails if it cannot save its final state."""


@dataclass
class Run:
    """A folder and the command that is restarted in it."""

    folder: Path
    command: list[str]
    ranks: int
    environment: dict[str, str]
    process: psutil.Popen | None = None
    lost_steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    died_at: float | None = None
    checkpoints: Store | None = None

    def start(self) -> None:
        command = [word.replace("{folder}", str(self.folder)) for word in self.command]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        with (self.folder / "output.txt").open("ab") as output:
            self.process = psutil.Popen(
                [*launch, *command], env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def ended(self) -> int | None:
        """Returns the exit code, or None while the command runs."""
        assert self.process is not None
        return self.process.poll()

    def workers(self) -> list[psutil.Process]:
        """Returns the processes of the ranks, ordered by rank."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.process.children()
        return []

    def kill_all(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            everyone = [self.process, *self.process.children(recursive=True)]
            for process in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(everyone, timeout=30)

    def store(self) -> Store | None:
        if self.checkpoints is None:
            commit_log = next(self.folder.rglob("commits.log"), None)
            self.checkpoints = None if commit_log is None else Store(commit_log.parent)
        return self.checkpoints

    def reached(self) -> Progress | None:
        store = self.store()
        return None if store is None else read_progress(store.folder / PROGRESS_FILE_NAME)

    def count_loss(self) -> None:
        """Records the steps that the next attempt must repeat."""
        store, reached = self.store(), self.reached()
        self.died_at = time.time()
        if store is not None and reached is not None:
            chosen = store.resolve().chosen_checkpoint
            self.lost_steps.append(max(0, reached.step - (chosen.step if chosen else 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="folder for both runs (default: a temporary one)")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.faults < 1 or arguments.nproc_per_node < 1:
        parser.error("--faults and --nproc-per-node must be at least 1")
    if arguments.folder and arguments.folder.exists():
        parser.error(f"--folder {arguments.folder} already exists. Remove it or choose another folder.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stops the runs, too
    generator = random.Random(arguments.seed)
    kinds = [arguments.kinds[number % len(arguments.kinds)] for number in range(arguments.faults)]
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(TemporaryDirectory()))
        undisturbed_folder, faulty_folder = ((folder / name).absolute() for name in ("undisturbed", "faulty"))
        for run_folder in (undisturbed_folder, faulty_folder):
            run_folder.mkdir(parents=True, exist_ok=False)
        runs = [
            Run(run_folder, arguments.command, arguments.nproc_per_node, {})
            for run_folder in (undisturbed_folder, faulty_folder)
        ]
        stack.callback(lambda: [run.kill_all() for run in runs])
        print("undisturbed run …", flush=True)
        start = time.monotonic()
        _run_to_end(runs[0])
        undisturbed = _load_last_checkpoint(runs[0])
        steps = undisturbed["global_step"]
        if steps < 2:
            sys.exit(f"The run ended at step {steps}. At least 2 steps are required to inject a fault.")
        plan = sorted((generator.randrange(1, steps), kind) for kind in kinds)
        data = [f"{kind}:{step}" for step, kind in plan if kind in DATA_FAULTS]
        if data:
            print(f"undisturbed run with {len(data)} faults in the data …", flush=True)
            runs[0] = Run(
                (folder / "undisturbed with data faults").absolute(), arguments.command, arguments.nproc_per_node, {}
            )
            runs[0].folder.mkdir()
            for run in (runs[0], runs[1]):
                run.environment = {"STORMPROOF_FAULTS": " ".join(data)}
            start = time.monotonic()
            _run_to_end(runs[0])
            if _is_same_checkpoint(undisturbed, _load_last_checkpoint(runs[0])):
                sys.exit(
                    "No nan or spike fault occurred. Add stormproof.testing.faults_from_environment to the callbacks, "
                    "or omit nan and spike from --kinds."
                )
        undisturbed_seconds = time.monotonic() - start
        print(f"run with {len(plan) - len(data)} more faults …", flush=True)
        start = time.monotonic()
        left = _inject_fault(runs[1], [(step, kind) for step, kind in plan if kind not in DATA_FAULTS], generator)
        total_seconds = time.monotonic() - start
        is_same = _is_same_checkpoint(_load_last_checkpoint(runs[0]), _load_last_checkpoint(runs[1]))
        _report(runs[1], Counter(kinds) - left, steps, undisturbed_seconds, total_seconds, is_same)
    sys.exit(not is_same)


def _run_to_end(run: Run) -> None:
    run.start()
    code = run.process.wait() if run.process else 1
    if code:
        sys.exit(f"The command ended with {code} without an injected fault: {_tail(run)}")


def _inject_fault(run: Run, plan: list[tuple[int, str]], generator: random.Random) -> Counter[str]:
    """Restarts the run until it finishes and injects each fault at its step. Returns the faults that were not injected.

    A fault function returns the number of seconds in which an exit with an error is attributed to the fault.
    """
    run.start()
    excused_until, moved = 0.0, time.monotonic()
    last: Progress | None = None
    while True:
        code = run.ended()
        if code == 0:
            return Counter(kind for _, kind in plan)
        if code is not None:
            if time.monotonic() > excused_until:
                sys.exit(f"The command ended with {code} without an injected fault: {_tail(run)}")
            run.count_loss()
            run.start()
            excused_until, moved = 0.0, time.monotonic()
        reached = run.reached()
        if reached is not None and reached != last:
            if run.died_at is not None and reached.time > run.died_at:
                run.seconds.append(reached.time - run.died_at)
                run.died_at = None
            last, moved = reached, time.monotonic()
        if time.monotonic() - moved > STALL_SECONDS:
            sys.exit(f"The run makes no progress at step {last.step if last else 0}: {_tail(run)}")
        alive = run.died_at is None and excused_until < math.inf  # a run that is restarting cannot be hit
        if plan and alive and reached is not None and reached.step >= plan[0][0] and _can_inject(run, plan[0][1]):
            try:
                excused_until = time.monotonic() + _FAULT_FUNCTIONS[plan[0][1]](run, generator)
                plan.pop(0)
            except (IndexError, psutil.NoSuchProcess, ProcessLookupError):
                time.sleep(0.1)  # the process has just ended or is about to end
            moved = time.monotonic()
        time.sleep(0.005)


def _can_inject(run: Run, kind: str) -> bool:
    """Returns whether the fault can be injected. Damaging the only checkpoint would leave none to resume from."""
    store = run.store()
    return kind not in {"torn", "flip"} or (store is not None and len(store.read_checkpoints()) > 1)


def _kill_rank(run: Run, generator: random.Random) -> float:
    generator.choice(run.workers()).kill()
    return math.inf


def _send_sigterm(run: Run, _: random.Random) -> float:
    assert run.process is not None
    run.process.terminate()
    return math.inf


def _pause_rank(run: Run, generator: random.Random) -> float:
    worker = generator.choice(run.workers())
    worker.suspend()
    time.sleep(generator.uniform(0.1, 3.0))
    worker.resume()
    return 0.0


def _truncate_checkpoint(run: Run, _: random.Random) -> float:
    run.kill_all()
    truncate_file(_newest_checkpoint(run))
    return math.inf


def _flip_bit(run: Run, generator: random.Random) -> float:
    run.kill_all()
    newest = _newest_checkpoint(run)
    flip_bit(newest, generator.randrange(8 * newest.stat().st_size))
    return math.inf


def _fill_disk(run: Run, generator: random.Random) -> float:
    pid, size = run.workers()[0].pid, _newest_checkpoint(run).stat().st_size // 2
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    time.sleep(generator.uniform(0.1, 3.0))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    return END_SECONDS


_FAULT_FUNCTIONS = {
    "kill": _kill_rank,
    "term": _send_sigterm,
    "pause": _pause_rank,
    "torn": _truncate_checkpoint,
    "flip": _flip_bit,
    "full": _fill_disk,
}


def _newest_checkpoint(run: Run) -> Path:
    store = run.store()
    assert store is not None
    return max((checkpoint.path for checkpoint in store.read_checkpoints()), key=lambda path: path.name)


def _load_last_checkpoint(run: Run) -> dict:
    store = run.store()
    latest = None if store is None else store.latest_checkpoint()
    if latest is None:
        sys.exit(
            f"{run.folder} contains no checkpoint. Use {{folder}} in the command and add CheckpointRecovery to the "
            "callbacks."
        )
    return torch.load(latest.path, map_location="cpu", weights_only=True)


def _is_same_checkpoint(first: dict, second: dict) -> bool:
    return first["global_step"] == second["global_step"] and all(
        _is_equal(first[part], second[part]) for part in ("state_dict", "optimizer_states", "lr_schedulers")
    )


def _is_equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second)]
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(*bits)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_is_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_is_equal, first, second))
    return first == second


def _report(
    run: Run, kinds: Counter[str], steps: int, undisturbed_seconds: float, total_seconds: float, is_same: bool
) -> None:
    print(f"\n{sum(kinds.values())} faults survived: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    print(f"{len(run.lost_steps)} restarts, {sum(run.lost_steps)} of {steps} steps repeated")
    if run.seconds:
        middle, longest = statistics.median(run.seconds), max(run.seconds)
        print(f"seconds from an exit to the next new step: {middle:.1f}, at most {longest:.1f}")
    if undisturbed_seconds:
        print(
            f"effective training time ratio: {undisturbed_seconds / total_seconds:.2f} ({undisturbed_seconds:.0f} "
            f"s undisturbed, {total_seconds:.0f} s with faults)"
        )
    print(f"weights and optimizers: {'bit-identical' if is_same else 'DIFFERENT'}")


def _tail(run: Run) -> str:
    return "\n" + (run.folder / "output.txt").read_text(errors="replace")[-2000:]


if __name__ == "__main__":
    main()

"""Measures how much training time kills cost with and without copies in memory (``memory_tier=True``).

    python scripts/benchmarks/memory_tier.py [--megabytes 50] [--seconds 60] [--every 30] [--between-kills 20]

Each round trains the same network with Adam four times in other processes: without and with copies in memory, and both
without and with kills. The killed runs get SIGKILL at the same random times after the start of training (exponential
distribution) and start again at once. Prints, over the rounds (``--rounds 2``), medians (minimum, maximum) of

- the overhead: additional duration of the run without kills that is due to the copies, as a share
- the effective training time ratio: duration of the run without kills and copies, divided by the time from the first
  start of training to its end, including restarts
- the steps that were repeated, as a share of all steps
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from wide_network import WIDTH, WideNetwork, count_layers

from stormproof import CheckpointRecovery, resumable
from stormproof.checkpoint import Store


class Progress(pl.Callback):
    """Writes the number of done steps and the training time of the attempt to a file."""

    def __init__(self, file: Path) -> None:
        self._file, self._start = file, time.time()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.time()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._file.write_text(json.dumps([trainer.global_step, self._start, time.time()]))


def train(folder: Path, megabytes: float, steps: int, every_seconds: float, memory_tier: bool) -> None:
    """Trains until the given step, or as long as the process lives."""
    pl.seed_everything(0)
    torch.set_num_threads(1)
    data = DataLoader(TensorDataset(torch.randn(steps * 64, WIDTH)), batch_size=64, shuffle=True)
    recovery = CheckpointRecovery(
        folder / "checkpoints", train_time_interval=every_seconds / 60, memory_tier=memory_tier
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Progress(folder / "progress.json"), recovery],
    )
    layers = count_layers(megabytes)
    trainer.fit(WideNetwork(layers), resumable(data), ckpt_path=recovery.latest_checkpoint())


def run(options: argparse.Namespace, steps: int, *, memory_tier: bool, kill_times: list[float]) -> dict[str, float]:
    """Starts attempts until one finishes. Returns the total seconds after the first step, and the number of steps."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, __file__, "--child", str(folder), str(options.megabytes), str(steps)]
    command += [str(options.every), str(int(memory_tier))]
    remaining_times, done_steps, first_start, end, kills = iter(kill_times), 0, 0.0, 0.0, 0
    while end == 0.0:
        (folder / "progress.json").unlink(missing_ok=True)
        with (folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        start, seconds = wait_for_first_step(folder, process), next(remaining_times, None)
        first_start = first_start or start
        try:
            if process.wait(None if seconds is None else max(0.0, start + seconds - time.time())) != 0:
                raise SystemExit((folder / "output.txt").read_text()[-2000:])
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        store = Store(folder / "checkpoints")
        newest = store.latest_checkpoint()
        if newest is not None and newest.step >= steps:  # the run may have finished before the kill
            end = read_progress(folder)[2]
        start_steps = [attempt.step for attempt in store.read_attempts()]
        done_steps += int(read_progress(folder)[0]) - start_steps[-1]
    shutil.rmtree(folder)
    return {"seconds": end - first_start, "steps": done_steps, "kills": kills}


def wait_for_first_step(folder: Path, process: subprocess.Popen[bytes]) -> float:
    """Returns the time at which the attempt began to train."""
    while not (folder / "progress.json").exists() or not (folder / "progress.json").read_text():
        if process.poll() is not None:
            raise SystemExit((folder / "output.txt").read_text()[-2000:])
        time.sleep(0.01)
    return read_progress(folder)[1]


def read_progress(folder: Path) -> list[float]:
    """Returns the steps, the start of the attempt and the time of the last step."""
    while True:
        try:
            return json.loads((folder / "progress.json").read_text())
        except ValueError:  # it is being written
            time.sleep(0.01)


def summarize(values: list[float]) -> str:
    """Returns the median (minimum, maximum)."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def main() -> None:
    """Runs all rounds and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=30)
    parser.add_argument("--between-kills", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    calibration = run(options, 50, memory_tier=False, kill_times=[])
    steps = max(20, round(50 * options.seconds / calibration["seconds"]))
    overheads: list[float] = []
    ratios: dict[bool, list[float]] = {False: [], True: []}
    repeated: dict[bool, list[float]] = {False: [], True: []}
    for number in range(options.rounds):
        generator = random.Random(number)
        kill_times = [generator.expovariate(1 / options.between_kills) for _ in range(8)]
        whole = run(options, steps, memory_tier=False, kill_times=[])
        with_copies = run(options, steps, memory_tier=True, kill_times=[])
        overheads.append(with_copies["seconds"] / whole["seconds"] - 1)
        for memory_tier in (False, True):
            result = run(options, steps, memory_tier=memory_tier, kill_times=kill_times)
            ratios[memory_tier].append(whole["seconds"] / result["seconds"])
            repeated[memory_tier].append(result["steps"] / steps - 1)
            print(f"round {number}, memory_tier={memory_tier}: {result}", flush=True)
    print(f"{steps} steps, overhead {summarize(overheads)}")
    for memory_tier in (False, True):
        print(f"memory_tier={memory_tier}: effective training time ratio {summarize(ratios[memory_tier])},", end=" ")
        print(f"repeated steps {summarize(repeated[memory_tier])}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, child_folder, child_megabytes, child_steps, child_every, child_tier = sys.argv
        train(Path(child_folder), float(child_megabytes), int(child_steps), float(child_every), child_tier == "1")
    else:
        main()

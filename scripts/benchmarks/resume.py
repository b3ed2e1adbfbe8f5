"""Measures how long ranks take to find, verify and load a checkpoint.

    python scripts/benchmarks/resume.py [--megabytes 1000] [--ranks 1 2 4] [--rounds 3] [--baseline CHECKOUT]

Saves one checkpoint of a network and its Adam optimizer. In each round, ``torchrun`` starts DDP processes on this
machine that resume from it, on the CPU with one thread each. Prints two times in seconds, for the slowest rank:

- ``latest``: ``CheckpointRecovery.latest_checkpoint()``, which verifies the checkpoint;
- ``start``: from the call of ``latest_checkpoint()`` to the first batch.

With ``--baseline``, each round also measures the package in another checkout of this repository, in alternating order.
The last column is then the median of the ratios of this checkout's times to the baseline's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from wide_network import WIDTH, WideNetwork, count_layers

from stormproof import CheckpointRecovery, resumable

ROOT = Path(__file__).resolve().parents[2]


class FirstBatch(pl.Callback):
    """Records the start time of the first batch."""

    at = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.at = self.at or time.perf_counter()


def train(folder: Path, layers: int, ranks: int, steps: int) -> dict[str, float]:
    """Trains up to ``steps`` steps, and returns this rank's times in seconds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    recovery, first = CheckpointRecovery(folder, every_n_train_steps=10**6), FirstBatch()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=ranks,
        strategy="auto" if ranks == 1 else "ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recovery, first],
    )
    module, loader = (
        WideNetwork(layers),
        resumable(DataLoader(TensorDataset(torch.ones(64, WIDTH)), batch_size=2), seed=1),
    )
    begun = time.perf_counter()
    path = recovery.latest_checkpoint()
    resolved_at = time.perf_counter()
    trainer.fit(module, loader, ckpt_path=path)
    return {"latest": resolved_at - begun, "start": first.at - begun}


def launch_ranks(checkout: Path, folder: Path, layers: int, ranks: int, steps: int) -> dict[str, float]:
    """Trains in new processes; returns the times of the slowest rank."""
    with tempfile.TemporaryDirectory() as out:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__, "--child"]
        path = os.pathsep.join(str(checkout / part) for part in ("callbacks", "src"))
        result = subprocess.run(
            [sys.executable, *command, str(folder), str(layers), str(ranks), str(steps), out],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            sys.exit(result.stderr)
        times = [json.loads(file.read_text()) for file in Path(out).iterdir()]
    return {name: max(rank_times[name] for rank_times in times) for name in times[0]}


def resume(checkout: Path, folder: Path, layers: int, ranks: int) -> dict[str, float]:
    """Resumes from a copy of ``folder`` in new processes, and returns the times of the slowest rank."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        for file in folder.iterdir():
            os.link(file, Path(copy, file.name))
        return launch_ranks(checkout, Path(copy), layers, ranks, steps=2)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, layers, ranks, steps, out = sys.argv[2:]
        times = train(Path(folder), int(layers), int(ranks), int(steps))
        Path(out, f"{os.environ['RANK']}.times").write_text(json.dumps(times))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the checkpoint")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline", type=Path, help="another checkout to compare with")
    arguments = parser.parse_args()
    layers = count_layers(arguments.megabytes)
    checkouts = {"this": ROOT} | ({"baseline": arguments.baseline.resolve()} if arguments.baseline else {})
    for ranks in arguments.ranks:
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder, "saved")
            launch_ranks(ROOT, saved, layers, ranks, steps=1)
            size = max(file.stat().st_size for file in saved.glob("*.ckpt"))
            rounds = []
            for number in range(arguments.rounds):
                names = list(checkouts)[:: 1 if number % 2 == 0 else -1]
                rounds.append({name: resume(checkouts[name], saved, layers, ranks) for name in names})
        for part in ("latest", "start"):
            line = f"{ranks} ranks, {size / 1e6:.0f} MB, {part}:"
            for name in checkouts:
                line += f" {name} {statistics.median(round_times[name][part] for round_times in rounds):.2f} s,"
            if arguments.baseline:
                ratio = statistics.median(
                    round_times["this"][part] / round_times["baseline"][part] for round_times in rounds
                )
                line += f" ratio {ratio:.2f}"
            print(line.rstrip(","), flush=True)


if __name__ == "__main__":
    main()

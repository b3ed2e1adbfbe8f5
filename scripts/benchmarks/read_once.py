"""Measures what the ranks of a node read, and how much memory they need, to resume from one checkpoint file.

    python scripts/benchmarks/read_once.py [--megabytes 2000] [--ranks 4] [--rounds 3]

Saves a checkpoint of a network and its Adam optimizer. In each round, in random order, ``torchrun`` starts DDP
processes with gloo that resume from it, on the CPU with one thread each. At the start, the file is not in the page
cache.

- ``lightning``: every rank reads the file, as Lightning does
- ``mapped``: every rank maps the file, as CheckpointRecovery does

Prints each measurement, and then medians (minimum, maximum) over the rounds:

- the bytes that the ranks read by system calls and from the disk, divided by the size of the file
- the seconds of the slowest rank, to verify and restore and until the first batch, and their ratios to one rank
- the additional peak memory of all ranks, divided by the size of the file: with the mapped file, where a shared page
  counts once (PSS), and without it (anonymous pages)
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch.utils.data import DataLoader, TensorDataset
from wide_network import WIDTH, WideNetwork, count_layers

from stormproof import CheckpointRecovery, resumable
from stormproof.resume import sharded_state

KINDS = ("lightning", "mapped")
BYTE_NAMES, TIME_NAMES = ("called", "disk", "pss", "anonymous"), ("restore", "start")


class FirstBatch(pl.Callback):
    """Calls a function before the first batch."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function: Callable[[], None] | None = function

    def on_train_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        if self.function is not None:
            self.function()
            self.function = None


class PeakMemory(threading.Thread):
    """Samples the memory of this process, in which a page of n processes counts 1/n, and its anonymous memory."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._first = self._peaks = self._read()
        self._has_ended = threading.Event()

    def run(self) -> None:
        while not self._has_ended.wait(0.1):
            self._peaks = [*map(max, self._peaks, self._read())]

    def stop(self) -> list[int]:
        """Returns the increases since the thread was created, in bytes."""
        self._has_ended.set()
        return [peak - first for peak, first in zip(self._peaks, self._first, strict=True)]

    def _read(self) -> list[int]:
        lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()]
        kilobytes = {words[0]: int(words[1]) for words in lines[1:]}
        return [kilobytes["Pss:"] * 1024, kilobytes["Anonymous:"] * 1024]


def read_io() -> dict[str, int]:
    """Returns the bytes that this process has read: ``rchar`` by system calls, ``read_bytes`` from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(":") for line in lines)}


def time_restore() -> list[float]:
    """Records the durations of the parts of Lightning's restore that use the checkpoint."""
    durations: list[float] = []

    def measure(method: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            method(*args, **kwargs)
            durations.append(time.perf_counter() - start)

        return timed

    for name in ("resume_start", "restore_model", "restore_callbacks", "restore_optimizers"):
        setattr(_CheckpointConnector, name, measure(getattr(_CheckpointConnector, name)))
    return durations


def wait_for_ranks(folder: Path, ranks: int) -> None:
    """Returns once all ranks have called it."""
    (folder / f"{os.environ['RANK']}.ready").touch()
    while len([*folder.glob("*.ready")]) < ranks:
        time.sleep(0.01)


def train(folder: Path, layers: int, ranks: int, steps: int, kind: str, out: Path) -> None:
    """Trains up to ``steps`` steps, and writes the measurements of this rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if kind == "lightning":
        sharded_state.is_mappable = lambda _: False
    durations, measured = time_restore(), {}
    module, loader = (
        WideNetwork(layers),
        resumable(DataLoader(TensorDataset(torch.ones(64, WIDTH)), batch_size=2), seed=1),
    )
    wait_for_ranks(out, ranks)
    before, memory, start = read_io(), PeakMemory(), time.perf_counter()
    memory.start()

    def record() -> None:
        after = read_io()
        pss, anonymous = memory.stop()
        measured.update(
            called=after["rchar"] - before["rchar"],
            disk=after["read_bytes"] - before["read_bytes"],
            restore=resolved - start + sum(durations),
            start=time.perf_counter() - start,
            pss=pss,
            anonymous=anonymous,
        )

    recovery = CheckpointRecovery(folder, every_n_train_steps=10**6)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=ranks, strategy=DDPStrategy(process_group_backend="gloo"),
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[recovery, FirstBatch(record)],
    )  # fmt: skip
    path = recovery.latest_checkpoint()
    resolved = time.perf_counter()
    trainer.fit(module, loader, ckpt_path=path)
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(measured))


def launch_ranks(folder: Path, layers: int, ranks: int, steps: int, kind: str) -> list[dict[str, float]]:
    """Trains in new processes and returns the measurements of each rank."""
    with tempfile.TemporaryDirectory() as out:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__, "--child"]
        result = subprocess.run(
            [sys.executable, *command, str(folder), str(layers), str(ranks), str(steps), kind, out],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            sys.exit(result.stderr)
        return [json.loads(file.read_text()) for file in Path(out).glob("*.json")]


def resume(folder: Path, layers: int, ranks: int, kind: str) -> dict[str, float]:
    """Resumes from a copy of ``folder`` whose files are not in the page cache."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        for file in folder.iterdir():
            os.link(file, Path(copy, file.name))
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        measured = launch_ranks(Path(copy), layers, ranks, 2, kind)
    size = max(file.stat().st_size for file in folder.glob("*.ckpt"))
    times = {name: max(rank[name] for rank in measured) for name in TIME_NAMES}
    return {name: sum(rank[name] for rank in measured) / size for name in BYTE_NAMES} | times


def summarize(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}, {max(values):.2f})"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, layers, ranks, steps, kind, out = sys.argv[2:]
        train(Path(folder), int(layers), int(ranks), int(steps), kind, Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the checkpoint")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    layers = count_layers(arguments.megabytes)
    cases = [(kind, ranks) for ranks in (1, arguments.ranks) for kind in KINDS]
    rounds: list[dict[tuple[str, int], dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, arguments.ranks):
            launch_ranks(Path(folder, f"{ranks}"), layers, ranks, 1, "mapped")
        for number in range(arguments.rounds):
            order = random.Random(number).sample(cases, len(cases))
            rounds.append({})
            for kind, ranks in order:
                rounds[-1][kind, ranks] = resume(Path(folder, f"{ranks}"), layers, ranks, kind)
                print(ranks, kind, rounds[-1][kind, ranks], flush=True)
    for kind, ranks in cases:
        values = {
            name: summarize([measured[kind, ranks][name] for measured in rounds]) for name in (*BYTE_NAMES, *TIME_NAMES)
        }
        ratios = {
            name: summarize([measured[kind, ranks][name] / measured[kind, 1][name] for measured in rounds])
            for name in TIME_NAMES
        }
        print(
            f"{ranks} ranks, {kind}: read {values['called']} files by calls and {values['disk']} from the disk, "
            f"restore {values['restore']} s, ratio {ratios['restore']}, first batch {values['start']} s, "
            f"ratio {ratios['start']}, memory {values['pss']} files, {values['anonymous']} without the mapped file"
        )


if __name__ == "__main__":
    main()

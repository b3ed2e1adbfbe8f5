"""What an artifact costs, measured in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.compression.deployment.measuring import __file__ as here
from stormproof_train.errors import UserError


@dataclass(frozen=True)
class Latency:
    """Seconds for a batch.

    Attributes:
        median: of the runs.
        p95: that 95% of the runs took at most.
        runs: how many were measured.
    """

    median: float
    p95: float
    runs: int


@dataclass(frozen=True)
class Measured:
    """What an artifact gives and takes.

    Attributes:
        outputs: for the inputs, (N, …).
        bytes: of the file.
        load_seconds: from the file to a network that is ready.
        latencies: by the size of the batch, 1 and 32.
        memory: most bytes that the process had.
        memory_without: most that it had before the artifact was loaded, with the runtime and the inputs.
        threads: that computed one operation.
    """

    outputs: NDArray[Any]
    bytes: int
    load_seconds: float
    latencies: Mapping[int, Latency]
    memory: int
    memory_without: int
    threads: int


def measure(path: Path, inputs: NDArray[Any], threads: int = 1, seconds: float = 1.0) -> Measured:
    r"""Runs an artifact on inputs, 32 at a time, and measures it.

    Args:
        path: the ONNX file.
        inputs: (N, \*input_shape), at least one.
        threads: for one operation, at least 1.
        seconds: for each size of batch, after a fifth as long to warm up; ten runs in any case.

    Raises:
        ValueError: if there is no input, or a number is out of its range.
        UserError: if the process fails, with its last line.
    """
    if not len(inputs) or threads < 1 or seconds < 0:
        raise ValueError(
            f"{len(inputs)} inputs, threads={threads} and seconds={seconds}: at least 1, 1 and 0 are wanted"
        )
    with TemporaryDirectory() as folder:
        given, outputs, measured = (Path(folder) / name for name in ("inputs.npz", "outputs.npz", "measured.json"))
        np.savez(given, inputs=inputs)
        _run(path, [str(each) for each in (path, given, outputs, measured, threads, seconds)])
        told = json.loads(measured.read_text(encoding="utf-8"))
        with np.load(outputs) as arrays:
            found = arrays["outputs"]
    latencies = {int(size): Latency(**each) for size, each in told.pop("latencies").items()}
    return Measured(found, latencies=latencies, threads=threads, **told)


def _run(path: Path, arguments: list[str]) -> None:
    """In isolation: neither the user's settings of Python nor the working directory change what is imported."""
    script = Path(here).with_name("alone.py")
    ended = subprocess.run(
        [sys.executable, "-I", str(script), *arguments], capture_output=True, text=True, errors="replace", check=False
    )
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise UserError(f"{path} could not be measured: its process was killed by {name}, as when memory runs out")
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"its process ended with code {ended.returncode}"]
        raise UserError(f"{path} could not be measured: {lines[-1]}")

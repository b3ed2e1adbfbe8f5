"""Runs an artifact in a process without this package and without torch.

``python isolated_script.py MODEL INPUTS.npy THREADS`` loads the artifact and prints its size, load time and peak
memory. It then reads commands from standard input: ``time SECONDS`` or ``predict OUTPUTS.npy``. Prints one line of JSON
per command.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

BATCHES = (1, 32)
FEWEST = 10
"""Runs of each batch that are measured, however long they take."""


def main(model: str, inputs_file: str, threads: str) -> None:
    """Loads the artifact, and answers until its input ends."""
    inputs = np.load(inputs_file, mmap_mode="r")
    without = peak_memory()
    began = time.perf_counter()
    session = _session(model, int(threads))
    loaded = time.perf_counter() - began
    _answer({"bytes": Path(model).stat().st_size, "load_seconds": loaded, "memory_without": without})
    name = session.get_inputs()[0].name
    some = np.resize(inputs[: BATCHES[-1]], (BATCHES[-1], *inputs.shape[1:]))

    def predict(batch: Any) -> Any:
        return session.run(None, {name: batch})[0]

    for line in sys.stdin:
        asked, _, argument = line.rstrip("\n").partition(" ")
        if asked == "time":
            latencies = {str(size): _latency(predict, some[:size], float(argument)) for size in BATCHES}
            _answer({"latencies": latencies, "memory": peak_memory()})
        else:
            parts = [predict(inputs[first : first + BATCHES[-1]]) for first in range(0, len(inputs), BATCHES[-1])]
            np.save(argument, np.concatenate(parts))
            _answer({})


def _answer(told: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


def peak_memory() -> int:
    """The most bytes of memory that this process has had.

    Linux leaves ``ru_maxrss`` as it was in the process that started this one, which may have had gigabytes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def _session(model: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _latency(predict: Callable[[Any], Any], batch: Any, seconds: float) -> dict[str, float]:
    """Of as many runs as fit the time, after a fifth of it to warm up."""
    _timed(predict, batch, seconds / 5)
    times = _timed(predict, batch, seconds)
    return {"median": float(np.median(times)), "p95": float(np.percentile(times, 95)), "runs": len(times)}


def _timed(predict: Callable[[Any], Any], batch: Any, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < FEWEST or time.perf_counter() < end:
        began = time.perf_counter()
        predict(batch)
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs an artifact in a process that has nothing but it: started by its path, without this package and without torch.

``python -I alone.py MODEL INPUTS.npz OUTPUTS.npz MEASURED.json THREADS SECONDS``
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


def main(model: str, inputs_file: str, outputs_file: str, measured_file: str, threads: str, seconds: str) -> None:
    """Writes what the artifact gives for the inputs, and what that took."""
    inputs = np.load(inputs_file)["inputs"]
    without = peak_memory()
    began = time.perf_counter()
    session = _session(model, int(threads))
    loaded = time.perf_counter() - began
    name = session.get_inputs()[0].name

    def predict(batch: Any) -> Any:
        return session.run(None, {name: batch})[0]

    parts = [predict(inputs[first : first + BATCHES[-1]]) for first in range(0, len(inputs), BATCHES[-1])]
    latencies = {
        str(size): _latency(predict, np.resize(inputs, (size, *inputs.shape[1:])), float(seconds)) for size in BATCHES
    }
    measured = {
        "bytes": Path(model).stat().st_size,
        "load_seconds": loaded,
        "latencies": latencies,
        "memory": peak_memory(),
        "memory_without": without,
    }
    np.savez(outputs_file, outputs=np.concatenate(parts))
    Path(measured_file).write_text(json.dumps(measured), encoding="utf-8")


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

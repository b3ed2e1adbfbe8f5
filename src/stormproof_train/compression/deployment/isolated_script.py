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

BATCH_SIZES = (1, 32)
MIN_RUNS = 10
"""Minimum number of timed runs per batch size."""


def main(model: str, inputs_file: str, threads: str) -> None:
    """Loads the artifact, then executes commands until standard input ends."""
    inputs = np.load(inputs_file, mmap_mode="r")
    baseline_memory = read_peak_memory()
    start = time.perf_counter()
    session = _create_session(model, int(threads))
    load_seconds = time.perf_counter() - start
    _write_answer(
        {"bytes": Path(model).stat().st_size, "load_seconds": load_seconds, "memory_without": baseline_memory}
    )
    name = session.get_inputs()[0].name
    timing_inputs = np.resize(inputs[: BATCH_SIZES[-1]], (BATCH_SIZES[-1], *inputs.shape[1:]))

    def predict(batch: Any) -> Any:
        return session.run(None, {name: batch})[0]

    for line in sys.stdin:
        command, _, argument = line.rstrip("\n").partition(" ")
        if command == "time":
            latencies = {
                str(size): _measure_latency(predict, timing_inputs[:size], float(argument)) for size in BATCH_SIZES
            }
            _write_answer({"latencies": latencies, "memory": read_peak_memory()})
        else:
            outputs = [
                predict(inputs[offset : offset + BATCH_SIZES[-1]]) for offset in range(0, len(inputs), BATCH_SIZES[-1])
            ]
            np.save(argument, np.concatenate(outputs))
            _write_answer({})


def _write_answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def read_peak_memory() -> int:
    """Returns the peak memory of this process in bytes.

    Linux initializes ``ru_maxrss`` with the peak of the parent process, which may have used gigabytes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def _create_session(model: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _measure_latency(predict: Callable[[Any], Any], batch: Any, seconds: float) -> dict[str, float]:
    """Times as many runs as fit into the time, after a warm-up of a fifth of it."""
    _time_runs(predict, batch, seconds / 5)
    times = _time_runs(predict, batch, seconds)
    return {"median": float(np.median(times)), "p95": float(np.percentile(times, 95)), "runs": len(times)}


def _time_runs(predict: Callable[[Any], Any], batch: Any, seconds: float) -> list[float]:
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < MIN_RUNS or time.perf_counter() < deadline:
        start = time.perf_counter()
        predict(batch)
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Measures an artifact in a separate process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stormproof_train.errors import UserError

SCRIPT = Path(__file__).with_name("isolated_script.py")


@dataclass(frozen=True)
class Latency:
    """Seconds per batch.

    Attributes:
        median: Median.
        p95: 95th percentile.
        runs: Number of measurements.
    """

    median: float
    p95: float
    runs: int


class IsolatedProcess:
    r"""An artifact in a separate process that imports only numpy and onnxruntime.

    Args:
        path: Path of the ONNX file.
        inputs: At least one input (samples, \*input_shape).
        threads: Threads per operation. Must be at least 1.

    Attributes:
        bytes: Size of the file.
        load_seconds: Seconds to load the file.
        baseline_memory: Peak memory of the process before, in bytes.
        memory: Peak memory at the last timing, in bytes.

    Raises:
        ValueError: If there are no inputs, or ``threads`` is out of range.
        UserError: If the process fails, with its last line. Methods raise it too.
    """

    def __init__(self, path: Path, inputs: NDArray[Any], threads: int = 1) -> None:
        if not len(inputs) or threads < 1:
            raise ValueError(
                f"at least one input and one thread are needed, got {len(inputs)} inputs and threads={threads}"
            )
        self._path, self._folder = path, TemporaryDirectory()
        inputs_path = Path(self._folder.name, "inputs.npy")
        np.save(inputs_path, inputs)
        self._errors = Path(self._folder.name, "errors")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                # -P: imports nothing from the folder of the script
                [sys.executable, "-P", str(SCRIPT), *map(str, (path, inputs_path, threads))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            answer = self._receive()
        except BaseException:
            self.close()
            raise
        self.bytes: int = answer["bytes"]
        self.load_seconds: float = answer["load_seconds"]
        self.baseline_memory: int = answer["memory_without"]
        self.memory = self.baseline_memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Terminates the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def measure_latencies(self, seconds: float) -> dict[int, Latency]:
        """Times batches of 1 and 32, with at least ten runs after a warm-up of a fifth of the time.

        Args:
            seconds: Seconds per batch size. Must not be negative.

        Raises:
            ValueError: If ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(f"`seconds` must not be negative, got {seconds}")
        answer = self._send(f"time {seconds}")
        self.memory = answer["memory"]
        return {int(size): Latency(**fields) for size, fields in answer["latencies"].items()}

    def predict(self) -> NDArray[Any]:
        """Returns the outputs for all inputs, computed in batches of 32."""
        outputs = Path(self._folder.name, "outputs.npy")
        self._send(f"predict {outputs}")
        return np.load(outputs)

    def _send(self, line: str) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # _receive reports the cause
            pass
        return self._receive()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            raise UserError(
                f"{self._path} could not be measured: its process was killed by {name}, possibly because memory ran out"
            )
        lines = self._errors.read_text(errors="replace").strip().splitlines() or [f"its process ended with code {code}"]
        raise UserError(f"{self._path} could not be measured: {lines[-1]}")

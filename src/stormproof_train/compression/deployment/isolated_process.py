"""An artifact in a process of its own: what it says, and what it costs there."""

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
    """Seconds for a batch.

    Attributes:
        median: of the runs.
        p95: that 95% of the runs took at most.
        runs: how many were measured.
    """

    median: float
    p95: float
    runs: int


class IsolatedProcess:
    r"""An artifact in a process of its own, which has numpy and onnxruntime and nothing else.

    Args:
        path: the ONNX file.
        inputs: (N, \*input_shape), at least one.
        threads: for one operation, at least 1.

    Attributes:
        bytes: of the file.
        load_seconds: from the file to a network that is ready.
        baseline_memory: most bytes that the process had before.
        memory: most bytes that it had when it was timed last.

    Raises:
        ValueError: if there is no input, or a number is out of its range.
        UserError: if the process fails, with its last line; so do the methods.
    """

    def __init__(self, path: Path, inputs: NDArray[Any], threads: int = 1) -> None:
        if not len(inputs) or threads < 1:
            raise ValueError(f"{len(inputs)} inputs and threads={threads}: at least 1 is wanted of either")
        self._path, self._folder = path, TemporaryDirectory()
        inputs_path = Path(self._folder.name, "inputs.npy")
        np.save(inputs_path, inputs)
        self._errors = Path(self._folder.name, "errors")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                # with what this process can import, and nothing from beside the script
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
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def measure_latencies(self, seconds: float) -> dict[int, Latency]:
        """What batches of 1 and 32 take, each timed for so long after a fifth of it to warm up; ten runs in any case.

        Raises:
            ValueError: if ``seconds`` is below 0.
        """
        if seconds < 0:
            raise ValueError(f"seconds={seconds}: at least 0 is wanted")
        answer = self._send(f"time {seconds}")
        self.memory = answer["memory"]
        return {int(size): Latency(**fields) for size, fields in answer["latencies"].items()}

    def predict(self) -> NDArray[Any]:
        """What it gives for all inputs, 32 at a time."""
        outputs = Path(self._folder.name, "outputs.npy")
        self._send(f"predict {outputs}")
        return np.load(outputs)

    def _send(self, line: str) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # why, the answer tells
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
                f"{self._path} could not be measured: its process was killed by {name}, as when memory runs out"
            )
        lines = self._errors.read_text(errors="replace").strip().splitlines() or [f"its process ended with code {code}"]
        raise UserError(f"{self._path} could not be measured: {lines[-1]}")

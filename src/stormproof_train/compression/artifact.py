"""Stores an artifact's measurements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stormproof.checkpoint import atomic_write
from stormproof_train.errors import UserError
from stormproof_train.evaluation.intervals import Interval
from stormproof_train.initialization.checkpoint import compute_digest
from stormproof_train.mapping_file import read_mapping

Quantization = Literal["none", "int8", "weights_int8"]
MEASUREMENTS_FILE = "measured.json"
MODEL_FILE, WEIGHTS_FILE = "model.onnx", "model.ckpt"


@dataclass(frozen=True)
class Artifact:
    """A file that can be deployed, and its measurements on validation in separate processes.

    Attributes:
        name: Name of the artifact.
        network: Name of the network before quantization.
        quantization: Number format of the weights.
        method: Description of how it was made.
        parameters: Number of parameters of the network.
        macs: Multiply-accumulates per sample.
        bytes: Size of the file.
        value: Headline metric with its interval.
        degradation: Decrease in quality compared with the original on the same samples. Negative if it is better.
        calibration_error: Expected calibration error of probabilities. None for other outputs.
        difference: Largest absolute difference from the outputs of the network in PyTorch.
        latency: ``median`` and ``p95`` in seconds, and ``original``, the median of the original timed in alternation,
            by batch size.
        speedup: Speedup over the original by batch size, timed in alternation.
        memory: Bytes of process memory that it needs.
        load_seconds: Seconds to load it.
        digests: SHA-256 of the measured files by name.
    """

    name: str
    network: str
    quantization: Quantization
    method: str
    parameters: int
    macs: int
    bytes: int
    value: Interval
    degradation: Interval
    calibration_error: float | None
    difference: float
    latency: Mapping[str, Mapping[str, float]]
    speedup: Mapping[str, Interval]
    memory: int
    load_seconds: float
    digests: Mapping[str, str]

    def save(self, folder: Path) -> None:
        """Writes the measurements to the folder of the artifact, atomically."""
        with atomic_write(folder / MEASUREMENTS_FILE) as file:
            file.write(f"{json.dumps(asdict(self), indent=1)}\n".encode())

    @classmethod
    def load(cls, folder: Path) -> Artifact | None:
        """Reads what :meth:`save` wrote. Returns None if it is missing or a file has changed since."""
        try:
            content = read_mapping(folder / MEASUREMENTS_FILE, tuple(cls.__dataclass_fields__))
            if content is None or content["digests"] != compute_digests(folder, content["digests"]):
                return None
            fields: dict[str, Any] = dict(content)
            for name in ("value", "degradation"):
                fields[name] = Interval(**fields[name])
            fields["speedup"] = {batch: Interval(**speedup) for batch, speedup in fields["speedup"].items()}
            return cls(**fields)
        except (UserError, TypeError, AttributeError):  # a damaged artifact is rebuilt
            return None

    @property
    def is_faster(self) -> bool:
        """True if the lower end of the speedup for a single sample is above 1."""
        low = self.speedup["1"].low
        return low is not None and low > 1


def compute_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of the files that exist, by name."""
    return {name: compute_digest(folder / name) for name in names if (folder / name).is_file()}

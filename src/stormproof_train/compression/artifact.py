"""An artifact: a file that can be deployed, and all that was measured of it."""

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
    """What was measured of an artifact on validation, in processes of its own.

    Attributes:
        name: of it.
        network: the name of the network that it is of, before it was quantized.
        quantization: what it is stored in.
        method: how it was made, in words.
        parameters: of the network.
        macs: multiply-accumulates of one sample.
        bytes: of the file.
        value: of the headline metric, with its interval.
        lost: by how much that is worse than the original's, on the same samples.
        calibration_error: of probabilities; None of others.
        difference: the largest absolute one to the network in PyTorch.
        latency: by batch size ``median`` and ``p95`` in seconds, and ``original``, the median of the original in turn
            with it.
        speedup: by batch size how many times faster than the original, measured in turn with it.
        memory: bytes that the process took for it.
        load_seconds: that it took to be loaded.
        digests: by name the SHA-256 of the files that were measured.
    """

    name: str
    network: str
    quantization: Quantization
    method: str
    parameters: int
    macs: int
    bytes: int
    value: Interval
    lost: Interval
    calibration_error: float | None
    difference: float
    latency: Mapping[str, Mapping[str, float]]
    speedup: Mapping[str, Interval]
    memory: int
    load_seconds: float
    digests: Mapping[str, str]

    def save(self, folder: Path) -> None:
        """Writes it beside the artifact, whole or not at all."""
        with atomic_write(folder / MEASUREMENTS_FILE) as file:
            file.write(f"{json.dumps(asdict(self), indent=1)}\n".encode())

    @classmethod
    def load(cls, folder: Path) -> Artifact | None:
        """What :meth:`save` wrote there, if it did, and all files are still what was measured."""
        try:
            content = read_mapping(folder / MEASUREMENTS_FILE, tuple(cls.__dataclass_fields__))
            if content is None or content["digests"] != compute_digests(folder, content["digests"]):
                return None
            fields: dict[str, Any] = dict(content)
            for name in ("value", "lost"):
                fields[name] = Interval(**fields[name])
            fields["speedup"] = {batch: Interval(**speedup) for batch, speedup in fields["speedup"].items()}
            return cls(**fields)
        except (UserError, TypeError, AttributeError):  # what is damaged can be made again
            return None

    @property
    def is_faster(self) -> bool:
        """Whether it is for one sample, at the worse end of the interval."""
        low = self.speedup["1"].low
        return low is not None and low > 1


def compute_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """By name the SHA-256 of those of these files that are there."""
    return {name: compute_digest(folder / name) for name in names if (folder / name).is_file()}

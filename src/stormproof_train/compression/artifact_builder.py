"""Builds and measures artifacts. Existing artifacts are reused."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import stats
from torch import nn

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.artifact import (
    MEASUREMENTS_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    Artifact,
    Quantization,
    compute_digests,
)
from stormproof_train.compression.budget import estimate_degradation
from stormproof_train.compression.deployment.cleanup_passes import run_cleanup_passes
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.export import export_onnx, measure_max_difference
from stormproof_train.compression.deployment.int8_cpu import cpu_has_vnni
from stormproof_train.compression.deployment.isolated_process import IsolatedProcess, Latency
from stormproof_train.compression.deployment.static_quantization import quantize_static
from stormproof_train.compression.original import OriginalModel
from stormproof_train.compression.samples import Samples, load_samples
from stormproof_train.compression.settings import Settings
from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.compression.structure.rebuild import Structure
from stormproof_train.config.redaction import redact_settings
from stormproof_train.console import format_value, print_line
from stormproof_train.errors import UserError
from stormproof_train.evaluation.comparison import have_same_samples
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.intervals import Interval
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.predict.artifact_metadata import ArtifactMetadata
from stormproof_train.task import CLASSES_KEY, SCALE_KEY

Latencies = Mapping[int, Latency]
"""Latency by batch size."""

CALIBRATION_SAMPLES = 512
"""Number of training samples for calibrating the range of activations."""
TIMING_ROUNDS = 7
"""Number of timing rounds. Artifact and original are timed in alternation, and the first of a round alternates."""
COMPARED_SAMPLES = 64
"""Number of samples on which an artifact is compared with its network in PyTorch."""
ORIGINAL = "original"
VALIDATION, TEST = "validation", "test"
"""Splits that artifacts predict."""


@dataclass(frozen=True)
class Candidate:
    """A network from which artifacts are built."""

    name: str
    network: nn.Module
    structure: Structure
    method: str


class ArtifactBuilder:
    """Builds and measures artifacts."""

    def __init__(self, original: OriginalModel, artifacts: Path, settings: Settings) -> None:
        self._original, self._folder, self._settings = original, artifacts, settings
        self._num_outputs = 0 if original.spec.num_classes else original.spec.num_outputs
        self.validation = load_samples(original.data, "validation", self._num_outputs, settings.samples)
        self.calibration = load_samples(original.data, "train", self._num_outputs, CALIBRATION_SAMPLES)

    @property
    def original_candidate(self) -> Candidate:
        """The network that all others are derived from."""
        return Candidate(ORIGINAL, self._original.task.network, Structure(), "as it was trained")

    def build(self, candidate: Candidate, quantization: Quantization = "none") -> Artifact:
        """Builds an artifact and measures it in separate processes, unless it exists already.

        Args:
            candidate: Network. The original must be built first, and each network without quantization first.
            quantization: Number format.

        Raises:
            UserError: If the network cannot be exported or quantized.
        """
        name = candidate.name if quantization == "none" else f"{candidate.name}-{quantization.replace('_', '-')}"
        folder = self.artifact_dir(name)
        stored_artifact = Artifact.load(folder)
        if stored_artifact is not None:
            return stored_artifact
        if (folder / MEASUREMENTS_FILE).exists():
            print_line(f"{name}: the files in {folder} have changed since they were measured; rebuilding")
        folder.mkdir(exist_ok=True)
        (folder / f"{TEST}.npz").unlink(missing_ok=True)  # may belong to an earlier file
        self._write_files(candidate, quantization, folder)
        artifact = self._measure(name, candidate, quantization, folder)
        artifact.save(folder)
        print_line(
            f"{name}: {self._original.headline.name} {format_value(artifact.value.value)}, "
            f"{artifact.bytes / 1000:,.1f} kB"
        )
        return artifact

    def artifact_dir(self, name: str) -> Path:
        """Returns the folder of an artifact."""
        return self._folder / name

    def load_predictions(self, name: str, split: str = VALIDATION) -> Predictions:
        """Returns the predictions of an artifact for a split."""
        return Predictions.load(self.artifact_dir(name) / f"{split}.npz")

    def predict_test_split(self, name: str) -> None:
        """Predicts the test split with an artifact, unless readable predictions exist."""
        try:
            self.load_predictions(name, TEST)
        except UserError:
            with self._start_process(name, self.test_samples) as process:
                self._save_predictions(process.predict(), self.test_samples, name, TEST)

    @functools.cached_property
    def test_samples(self) -> Samples:
        """Samples of the test split, loaded on first use."""
        return load_samples(self._original.data, "test", self._num_outputs, self._settings.samples)

    @property
    def metadata(self) -> ArtifactMetadata:
        """Metadata that each artifact contains."""
        original = self._original
        classes = original.task.classes or [str(index) for index in range(original.spec.num_classes or 0)]
        return ArtifactMetadata(
            kind=original.task.test_predictions.kind,
            classes=classes,
            input_shape=list(original.spec.input_shape),
            run=original.trained_weights.run.name,
            target=original.plan.data.kwargs.get("target"),
            preparation=getattr(original.data, "preparation", None),
        )

    def _write_files(self, candidate: Candidate, quantization: Quantization, folder: Path) -> None:
        """Writes the model file, and a checkpoint from which the network can be rebuilt."""
        if quantization == "none":
            export_onnx(
                self._deployed_model(candidate),
                torch.from_numpy(self.calibration.inputs),
                folder / MODEL_FILE,
                self.metadata,
            )
        elif quantization == "int8":
            needs_reduced_range = not cpu_has_vnni() and platform.machine().lower() in {"x86_64", "amd64"}
            source = self.artifact_dir(candidate.name) / MODEL_FILE
            quantize_static(source, folder / MODEL_FILE, self.calibration.inputs, reduce_range=needs_reduced_range)
        else:
            quantize_weights(self.artifact_dir(candidate.name) / MODEL_FILE, folder / MODEL_FILE)
        config = redact_settings({group: self._original.config[group] for group in ("model", "activation")})
        checkpoint = {
            "state_dict": candidate.network.state_dict(),
            "network": {
                "model": config["model"], "activation": config["activation"],
                "shapes": {name: list(shape) for name, shape in candidate.structure.shapes.items()},
                "ranks": dict(candidate.structure.ranks), "input_shape": list(self._original.spec.input_shape),
                "num_outputs": self._original.num_outputs, "num_classes": self._original.spec.num_classes,
            },
            SCALE_KEY: dict(zip(("shift", "scale"), self._original.task.shift_and_scale, strict=True)),
            CLASSES_KEY: self._original.task.classes,
        }  # fmt: skip
        with atomic_write(folder / WEIGHTS_FILE) as file:
            torch.save(checkpoint, file)

    def _measure(self, name: str, candidate: Candidate, quantization: Quantization, folder: Path) -> Artifact:
        with self._start_process(name, self.validation) as process:
            artifact_latencies, original_latencies = self._time_alternately(process, name)
            self._save_predictions(process.predict(), self.validation, name, VALIDATION)
        predictions, original_predictions = self.load_predictions(name), self.load_predictions(ORIGINAL)
        if not have_same_samples(original_predictions, predictions):
            raise UserError(
                f"the validation samples differ from those that {self.artifact_dir(ORIGINAL)} was measured on: use "
                "another folder (name=…)"
            )
        evaluation = evaluate(predictions)
        headline = None if evaluation is None else evaluation["headline"][self._original.headline.name]
        inputs = torch.from_numpy(self.validation.inputs[:COMPARED_SAMPLES])
        return Artifact(
            name=name,
            network=candidate.name,
            quantization=quantization,
            method=candidate.method
            if quantization == "none"
            else f"{candidate.method}, {_QUANTIZATION_DESCRIPTIONS[quantization]}",
            parameters=sum(parameter.numel() for parameter in candidate.network.parameters()),
            macs=count_macs(candidate.network, inputs),
            bytes=process.bytes,
            value=Interval(**headline) if headline else Interval(float("nan"), None, None),
            degradation=estimate_degradation(original_predictions, predictions)
            if name != ORIGINAL
            else Interval(0.0, 0.0, 0.0),
            calibration_error=None if evaluation is None else evaluation.get("calibration_error"),
            difference=measure_max_difference(folder / MODEL_FILE, self._deployed_model(candidate), inputs),
            latency={  # the ratio of the geometric means over rounds is the speedup
                str(batch_size): {
                    "median": geometric_mean([latencies[batch_size].median for latencies in artifact_latencies]),
                    "p95": geometric_mean([latencies[batch_size].p95 for latencies in artifact_latencies]),
                    "original": geometric_mean([latencies[batch_size].median for latencies in original_latencies]),
                }
                for batch_size in artifact_latencies[0]
            },
            speedup={
                str(batch_size): _estimate_speedup(
                    *(
                        [latencies[batch_size].median for latencies in rounds]
                        for rounds in (original_latencies, artifact_latencies)
                    )
                )
                for batch_size in artifact_latencies[0]
            },
            memory=process.memory - process.baseline_memory,
            load_seconds=process.load_seconds,
            digests=compute_digests(folder, (MODEL_FILE, WEIGHTS_FILE, f"{VALIDATION}.npz")),
        )

    def _time_alternately(self, process: IsolatedProcess, name: str) -> tuple[list[Latencies], list[Latencies]]:
        """Times an artifact and the original in alternation."""
        artifact_latencies: list[Latencies] = []
        seconds = self._settings.timing
        if name == ORIGINAL:
            artifact_latencies = [process.measure_latencies(seconds) for _ in range(TIMING_ROUNDS)]
            return artifact_latencies, artifact_latencies
        original_latencies: list[Latencies] = []
        with self._start_process(ORIGINAL, self.validation, max_samples=1) as original_process:
            for round_index in range(TIMING_ROUNDS):
                timings = [(artifact_latencies, process), (original_latencies, original_process)]
                for latencies, timed_process in timings[:: 1 if round_index % 2 else -1]:
                    latencies.append(timed_process.measure_latencies(seconds))
        return artifact_latencies, original_latencies

    def _start_process(self, name: str, samples: Samples, max_samples: int | None = None) -> IsolatedProcess:
        return IsolatedProcess(
            self.artifact_dir(name) / MODEL_FILE, samples.inputs[:max_samples], self._settings.threads
        )

    def _save_predictions(self, outputs: NDArray[Any], samples: Samples, name: str, split: str) -> None:
        predictions = Predictions(self._original.task.test_predictions.kind, outputs, samples.target, samples.checksums)
        predictions.save(self.artifact_dir(name) / f"{split}.npz")

    def _deployed_model(self, candidate: Candidate) -> DeployedModel:
        return DeployedModel.from_task(self._original.task, candidate.network)


_QUANTIZATION_DESCRIPTIONS = {"int8": "layers in int8 where that is faster", "weights_int8": "weights in int8"}


def _estimate_speedup(original_seconds: Sequence[float], artifact_seconds: Sequence[float]) -> Interval:
    r"""Returns the geometric mean of the ratios of paired times, with the 95% t interval of the mean logarithm.

    Args:
        original_seconds: Seconds of the original in each round. At least 2 rounds.
        artifact_seconds: Seconds of the artifact in the same rounds.

    Example:
        >>> speedup = _estimate_speedup([2.0, 2.2, 1.9, 2.1], [1.0, 1.0, 1.0, 1.0])
        >>> round(speedup.value, 2), round(speedup.low, 2), round(speedup.high, 2)
        (2.05, 1.85, 2.26)
    """
    logarithms = np.log(np.asarray(original_seconds) / np.asarray(artifact_seconds))
    mean, standard_error = float(logarithms.mean()), float(stats.sem(logarithms))
    low, high = stats.t.interval(0.95, len(logarithms) - 1, mean, standard_error) if standard_error else (mean, mean)
    return Interval(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)))


MAX_INT8 = 127
MIN_WEIGHTS = 256
"""Minimum number of weights of a quantized layer. For smaller ones, the additional nodes outweigh the savings."""


def quantize_weights(source: Path, target: Path) -> None:
    r"""Writes a file whose layers store their weights as int8, with a scale per output channel.

    A weight w becomes :math:`q = \mathrm{round}(w / s)` with :math:`s = \max |w| / 127` over its channel. A runtime
    computes :math:`s q` once when it loads the file, then needs the time and memory of the float32 model. Activations
    stay in float32, so no calibration samples are needed, and transformers, whose activations have outliers, keep their
    accuracy. The same file yields the same bytes.

    Args:
        source: Path of an artifact in float32.
        target: Path of the file, written atomically.

    Raises:
        UserError: If no layer has 256 weights.

    References:
        Dettmers, Lewis, Belkada & Zettlemoyer, LLM.int8(): 8-bit matrix multiplication for transformers at scale, 2022,
        section 2, for scales per channel, and section 4 for the outliers.
    """
    model = onnx.load(source)
    weights = {initializer.name: initializer for initializer in model.graph.initializer}
    axes = {
        node.input[1]: _output_axis(node, len(weights[node.input[1]].dims))
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in weights
    }
    large_axes = {name: axis for name, axis in axes.items() if np.prod(weights[name].dims) >= MIN_WEIGHTS}
    if not large_axes:
        raise UserError(f"{source} has no layer with {MIN_WEIGHTS} weights or more, so int8 would not reduce its size")
    for name, axis in reversed(large_axes.items()):
        int8_weight, scales = _quantize(numpy_helper.to_array(weights[name]), axis)
        model.graph.initializer.remove(weights[name])
        model.graph.initializer.append(numpy_helper.from_array(int8_weight, f"{name}_int8"))
        model.graph.initializer.append(numpy_helper.from_array(scales, f"{name}_step"))
        # Not DequantizeLinear, which onnxruntime would execute in each run, because it expects int8 layers after it.
        cast_node = helper.make_node("Cast", [f"{name}_int8"], [f"{name}_steps"], f"{name}_cast", to=TensorProto.FLOAT)
        multiply_node = helper.make_node("Mul", [f"{name}_steps", f"{name}_step"], [name], f"{name}_read")
        for node in (multiply_node, cast_node):
            model.graph.node.insert(0, node)
    with atomic_write(target) as file:
        file.write(run_cleanup_passes(model).SerializeToString(deterministic=True))


def _output_axis(node: onnx.NodeProto, num_dims: int) -> int:
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else num_dims - 1


def _quantize(weight: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    reduced_axes = tuple(dim for dim in range(weight.ndim) if dim != axis)
    largest = np.abs(weight).max(axis=reduced_axes, keepdims=True).astype(np.float32)
    scales = np.where(largest > 0, largest / MAX_INT8, 1).astype(np.float32)
    return np.rint(weight / scales).clip(-MAX_INT8, MAX_INT8).astype(np.int8), scales

"""Exports networks to ONNX, which runs without torch."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import opset20 as op

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.compression.deployment.suppress_output import suppress_output
from stormproof_train.errors import UserError, first_line
from stormproof_train.predict.artifact_metadata import METADATA_KEY, ArtifactMetadata

INPUT_NAME = "input"
"""Name of the input of an artifact."""

MAX_BYTES = 2**31 - 1
"""Maximum size of a protobuf message, and thus of an ONNX file."""


def export_onnx(deployed_model: DeployedModel, inputs: torch.Tensor, path: Path, metadata: ArtifactMetadata) -> None:
    r"""Exports a network in evaluation mode as an ONNX file, atomically.

    The file has the input ``input`` (batch, \*input_shape) with a dynamic batch size, and an output with the name of
    its kind, both float32. Batch norms are folded into the preceding layers, and source locations of nodes are removed.
    The same weights yield the same bytes.

    Args:
        deployed_model: Model to export. It is not changed.
        inputs: At least one sample for tracing (batch, \*input_shape).
        path: Path of the file.
        metadata: Metadata to store in the file.

    Raises:
        UserError: If an operation is not supported by ONNX or its exporter, or the network is too large.

    Example:
        >>> deployed = DeployedModel(torch.nn.Linear(4, 2), "probabilities")
        >>> metadata = ArtifactMetadata("probabilities", ["no", "yes"], [4], "mouse")
        >>> export_onnx(deployed, torch.ones(2, 4), Path("model.onnx"), metadata)
        >>> measure_max_difference(Path("model.onnx"), deployed, torch.eye(4)) < 1e-6
        True
    """
    cpu_copy = copy.deepcopy(deployed_model).float().cpu().eval()
    size = sum(tensor.numel() * tensor.element_size() for tensor in cpu_copy.state_dict().values())
    if size > MAX_BYTES:
        raise UserError(f"the network has {size:,} bytes of weights, but an ONNX file is limited to {MAX_BYTES:,}")
    model = _trace(cpu_copy, _pad_to_two_samples(inputs.detach().cpu()))
    _strip_sources(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def measure_max_difference(path: Path, deployed_model: DeployedModel, inputs: torch.Tensor) -> float:
    r"""Returns the largest absolute difference between the outputs of a file and of the network for the same inputs.

    Args:
        path: Path of the artifact.
        deployed_model: Model that was exported.
        inputs: Inputs (batch, \*input_shape).

    Returns:
        The difference in the unit of the outputs. NaN if an output is NaN.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected_outputs = copy.deepcopy(deployed_model).eval()(inputs).cpu().numpy()
    (onnx_outputs,) = session.run(None, {INPUT_NAME: inputs.cpu().numpy()})
    return float(np.abs(onnx_outputs - expected_outputs).max())


def _trace(deployed_model: DeployedModel, inputs: torch.Tensor) -> onnx.ModelProto:
    try:
        # torch 2.13's own tracing uses a deprecated part of its pytree module
        with suppress_output(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            program = torch.onnx.export(
                deployed_model,
                (inputs,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[deployed_model.kind],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                opset_version=op.version,
                verbose=False,
                custom_translation_table={
                    torch.ops.aten.rrelu.default: _rrelu_in_evaluation,
                    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
                },
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{type(deployed_model.network).__name__} cannot be exported to ONNX: {_describe_error(error)}"
        ) from error
    assert program is not None  # None is returned only for script modules
    return program.model_proto


def _pad_to_two_samples(inputs: torch.Tensor) -> torch.Tensor:
    """Pads to two samples, because torch would treat a batch size of 1 as fixed."""
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    return torch.cat([inputs[:2], inputs[:1]])[:2]


def _rrelu_in_evaluation(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Any:
    """Returns a leaky ReLU with the mean slope, which torch's exporter lacks."""
    return op.LeakyRelu(x, alpha=(lower + upper) / 2)


def _log_sigmoid(x: Any) -> Any:
    """Computes the log-sigmoid without overflow. Torch's exporter writes the logarithm of the sigmoid instead."""
    opset: Any = op  # its types do not support symbolic values
    return opset.Neg(opset.Softplus(opset.Neg(x)))


def _describe_error(error: BaseException) -> str:
    """Returns the unsupported operation, or torch's first message with the line of code."""
    causes = list(_iterate_causes(error))
    operation_match = re.search(r"op='([^']+)'", str(causes[-1]))
    if operation_match:
        return f"the operation {operation_match[1]} is not supported"
    location_match = re.search(r'File "([^"]+)", line (\d+), in (\w+)', str(causes[-1]))
    location = (
        f" ({Path(location_match[1]).name}, line {location_match[2]}, in {location_match[3]})" if location_match else ""
    )
    return f"{first_line(causes[-1])}{location}"


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _strip_sources(model: onnx.ModelProto) -> None:
    """Removes source locations, which are most of a small file and differ between machines."""
    graph = model.graph
    for message in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")

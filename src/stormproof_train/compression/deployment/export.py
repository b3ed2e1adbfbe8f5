"""A network as an ONNX file, which a machine without torch can run."""

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
"""The name of what an artifact takes."""

MAX_BYTES = 2**31 - 1
"""A protobuf message, which an ONNX file is, holds no more."""


def export_onnx(deployed_model: DeployedModel, inputs: torch.Tensor, path: Path, metadata: ArtifactMetadata) -> None:
    r"""Writes what a network computes in evaluation as an ONNX file, whole or not at all.

    The file takes ``input`` (N, \*input_shape), for any N, and gives an output named for its kind, both in float32.
    Batch norms are part of the layers before them; what nodes say of the source code is left out. The same weights make
    the same bytes.

    Args:
        deployed_model: what to write; it stays as it is.
        inputs: a sample or more, (N, \*input_shape), to trace the network with.
        path: the file.
        metadata: kept in the file's metadata.

    Raises:
        UserError: if the network does what ONNX, or torch's way to it, does not know, or is too large.

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
        raise UserError(f"the network has {size:,} bytes of weights, and one ONNX file holds {MAX_BYTES:,}")
    model = _trace(cpu_copy, _pad_to_two_samples(inputs.detach().cpu()))
    _strip_sources(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def measure_max_difference(path: Path, deployed_model: DeployedModel, inputs: torch.Tensor) -> float:
    r"""The largest absolute difference between what a file and the network itself give for the same inputs.

    Args:
        path: an artifact.
        deployed_model: what it was made of.
        inputs: (N, \*input_shape).

    Returns:
        It, in the unit of the outputs; NaN where one of them is.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected_outputs = copy.deepcopy(deployed_model).eval()(inputs).cpu().numpy()
    (onnx_outputs,) = session.run(None, {INPUT_NAME: inputs.cpu().numpy()})
    return float(np.abs(onnx_outputs - expected_outputs).max())


def _trace(deployed_model: DeployedModel, inputs: torch.Tensor) -> onnx.ModelProto:
    try:
        # torch 2.13's own tracing uses what its tree of arguments calls deprecated
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
            f"{type(deployed_model.network).__name__} cannot become an ONNX file: {_describe_error(error)}"
        ) from error
    assert program is not None  # of a script module alone
    return program.model_proto


def _pad_to_two_samples(inputs: torch.Tensor) -> torch.Tensor:
    """Of a single sample torch would take the number for fixed."""
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    return torch.cat([inputs[:2], inputs[:1]])[:2]


def _rrelu_in_evaluation(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Any:
    """A leaky ReLU with the mean slope; torch's exporter has none."""
    return op.LeakyRelu(x, alpha=(lower + upper) / 2)


def _log_sigmoid(x: Any) -> Any:
    """Finite for all x; the logarithm of the sigmoid, which torch's exporter writes, is not."""
    opset: Any = op  # whose types leave no symbolic values
    return opset.Neg(opset.Softplus(opset.Neg(x)))


def _describe_error(error: BaseException) -> str:
    """The operation that there is no way for, or what torch's tracing says first, with the line that it is about."""
    causes = list(_iterate_causes(error))
    operation_match = re.search(r"op='([^']+)'", str(causes[-1]))
    if operation_match:
        return f"there is no form of the operation {operation_match[1]} in it"
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
    """Where in the code each node comes from: it is most of a small file, and another on another machine."""
    graph = model.graph
    for message in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")

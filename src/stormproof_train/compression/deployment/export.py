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
from stormproof_train.compression.deployment.deployed import Deployed
from stormproof_train.compression.deployment.suppress_output import quiet
from stormproof_train.errors import UserError, first_line
from stormproof_train.predict.facts import KEY, Facts

INPUT = "input"
"""The name of what an artifact takes."""

MOST_BYTES = 2**31 - 1
"""A protobuf message, which an ONNX file is, holds no more."""


def export(deployed: Deployed, inputs: torch.Tensor, path: Path, facts: Facts) -> None:
    r"""Writes what a network computes in evaluation as an ONNX file, whole or not at all.

    The file takes ``input`` (N, \*input_shape), for any N, and gives an output named for its kind, both in float32.
    Batch norms are part of the layers before them; what nodes say of the source code is left out. The same weights make
    the same bytes.

    Args:
        deployed: what to write; it stays as it is.
        inputs: a sample or more, (N, \*input_shape), to trace the network with.
        path: the file.
        facts: kept in the file's metadata.

    Raises:
        UserError: if the network does what ONNX, or torch's way to it, does not know, or is too large.

    Example:
        >>> deployed = Deployed(torch.nn.Linear(4, 2), "probabilities")
        >>> export(deployed, torch.ones(2, 4), Path("model.onnx"), Facts("probabilities", ["no", "yes"], [4], "mouse"))
        >>> difference(Path("model.onnx"), deployed, torch.eye(4)) < 1e-6
        True
    """
    copied = copy.deepcopy(deployed).float().cpu().eval()
    size = sum(each.numel() * each.element_size() for each in copied.state_dict().values())
    if size > MOST_BYTES:
        raise UserError(f"the network has {size:,} bytes of weights, and one ONNX file holds {MOST_BYTES:,}")
    model = _traced(copied, _at_least_two(inputs.detach().cpu()))
    _leave_out_sources(model)
    onnx.helper.set_model_props(model, {KEY: facts.written()})
    with atomic_write(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def difference(path: Path, deployed: Deployed, inputs: torch.Tensor) -> float:
    r"""The largest absolute difference between what a file and the network itself give for the same inputs.

    Args:
        path: an artifact.
        deployed: what it was made of.
        inputs: (N, \*input_shape).

    Returns:
        It, in the unit of the outputs; NaN where one of them is.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = copy.deepcopy(deployed).eval()(inputs).cpu().numpy()
    (found,) = session.run(None, {INPUT: inputs.cpu().numpy()})
    return float(np.abs(found - wanted).max())


def _traced(deployed: Deployed, inputs: torch.Tensor) -> onnx.ModelProto:
    try:
        # torch 2.13's own tracing uses what its tree of arguments calls deprecated
        with quiet(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            program = torch.onnx.export(
                deployed,
                (inputs,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[deployed.kind],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                opset_version=op.version,
                verbose=False,
                custom_translation_table={
                    torch.ops.aten.rrelu.default: _rrelu_in_evaluation,
                    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
                },
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"{type(deployed.network).__name__} cannot become an ONNX file: {_reason(error)}") from error
    assert program is not None  # of a script module alone
    return program.model_proto


def _at_least_two(inputs: torch.Tensor) -> torch.Tensor:
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


def _reason(error: BaseException) -> str:
    """The operation that there is no way for, or what torch's tracing says first, with the line that it is about."""
    causes = list(_causes(error))
    unknown = re.search(r"op='([^']+)'", str(causes[-1]))
    if unknown:
        return f"there is no form of the operation {unknown[1]} in it"
    place = re.search(r'File "([^"]+)", line (\d+), in (\w+)', str(causes[-1]))
    where = f" ({Path(place[1]).name}, line {place[2]}, in {place[3]})" if place else ""
    return f"{first_line(causes[-1])}{where}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _leave_out_sources(model: onnx.ModelProto) -> None:
    """Where in the code each node comes from: it is most of a small file, and another on another machine."""
    graph = model.graph
    for each in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")

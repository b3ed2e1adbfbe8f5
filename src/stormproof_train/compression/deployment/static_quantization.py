"""A network in int8 through and through: weights, and what lies between the layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization.registry import QDQRegistry

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.deployment.silence import quiet
from stormproof_train.errors import UserError
from stormproof_train.predict.facts import KEY

BATCH = 32
"""Samples that are looked at together."""

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Layers, where the second of their inputs is a constant."""

FLOAT = ("Softmax", "LayerNormalization")
"""Of their outputs eight bits leave too little, wherever they stand."""


def quantize_static(source: Path, target: Path, samples: NDArray[np.float32], reduce_range: bool = False) -> None:
    r"""Writes a file whose layers compute in 8 bits, weights as int8 by channel and activations as uint8.

    A number r is stored as :math:`q = \mathrm{round}(r / s) + z`. The steps s of weights come from the largest of their
    channel, s and z of activations from the smallest and the largest number that the samples bring about. The last
    layer, and all that comes after it, stays in float32, and so do softmax and layer norm. The same file and samples
    make the same bytes.

    Args:
        source: an artifact in float32.
        target: the file, whole or not at all.
        samples: (N, \*input_shape) of the training data.
        reduce_range: takes 7 bits for weights: products of two numbers with all 8 overflow on x86 without VNNI.

    Raises:
        UserError: if there is no layer but the last.

    References:
        Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference,
        2018, section 2.
    """
    model = onnx.load(source)
    head = set(_head(model.graph))
    inner = [node for node in _layers(model.graph) if node.name not in head]
    if not inner:
        raise UserError(f"{source} has no layer but the last, which stays in float32: int8 would change nothing")
    with TemporaryDirectory() as folder, quiet():
        written = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            str(written),
            _Batches(model.graph.input[0].name, samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[each for each in QDQRegistry if each not in FLOAT],
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(head),
            calibrate_method=CalibrationMethod.MinMax,
        )
        made = onnx.load(written)
    onnx.helper.set_model_props(made, {each.key: each.value for each in model.metadata_props if each.key == KEY})
    with atomic_write(target) as file:
        file.write(made.SerializeToString(deterministic=True))


class _Batches(CalibrationDataReader):
    def __init__(self, name: str, samples: NDArray[np.float32]) -> None:
        self._batches = iter([{name: samples[first : first + BATCH]} for first in range(0, len(samples), BATCH)])

    def get_next(self) -> Any:
        return next(self._batches, None)


def _layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    constants = {each.name for each in graph.initializer}
    return [node for node in graph.node if node.op_type in WEIGHTED and node.input[1] in constants]


def _head(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of the nodes from the output back to the first layer on each way, which is one of them."""
    layers = {node.name for node in _layers(graph)}
    makers = {output: node for node in graph.node for output in node.output}
    wanted = [graph.output[0].name]
    while wanted:
        node = makers.get(wanted.pop())
        if node is None:
            continue
        yield node.name
        if node.name not in layers:
            wanted += node.input

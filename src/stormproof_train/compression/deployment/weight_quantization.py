"""Stores weights in int8 and computes in float32, which reduces the file to a quarter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.deployment.cleanup_passes import run_cleanup_passes
from stormproof_train.errors import UserError

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

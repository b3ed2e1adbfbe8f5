"""A file a quarter as large: weights in int8, computed with in float32."""

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
"""Of a layer; fewer are smaller as they are than with what it takes to read them."""


def quantize_weights(source: Path, target: Path) -> None:
    r"""Writes a file whose layers hold their weights as int8, with a step for each channel of their output.

    A weight w becomes :math:`q = \mathrm{round}(w / s)` with :math:`s = \max |w| / 127` over its channel, and
    :math:`s q` again, once, when a runtime loads the file; then it takes the time and the memory of the one in float32.
    What lies between the layers stays in float32: no samples are wanted, and transformers, whose activations have
    outliers, keep what they know. The same file makes the same bytes.

    Args:
        source: an artifact in float32.
        target: the file, whole or not at all.

    Raises:
        UserError: if no layer has 256 weights.

    References:
        Dettmers, Lewis, Belkada & Zettlemoyer, LLM.int8(): 8-bit matrix multiplication for transformers at scale, 2022,
        section 2, for steps by channel, and section 4 for the outliers.
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
        raise UserError(f"{source} has no layer of {MIN_WEIGHTS} weights or more: int8 would make nothing smaller")
    for name, axis in reversed(large_axes.items()):
        int8_weight, scales = _quantize(numpy_helper.to_array(weights[name]), axis)
        model.graph.initializer.remove(weights[name])
        model.graph.initializer.append(numpy_helper.from_array(int8_weight, f"{name}_int8"))
        model.graph.initializer.append(numpy_helper.from_array(scales, f"{name}_step"))
        # Not a DequantizeLinear, which onnxruntime would compute in each run: it looks for layers of int8 behind it.
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

"""Quantizes layers to int8 with ranges from calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization.registry import QDQRegistry

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.deployment.cleanup_passes import run_cleanup_passes
from stormproof_train.compression.deployment.export import INPUT_NAME
from stormproof_train.compression.deployment.suppress_output import suppress_output
from stormproof_train.errors import UserError
from stormproof_train.predict.artifact_metadata import METADATA_KEY

BATCH_SIZE = 32
"""Batch size of the calibration."""

FLOAT32_OPS = ("Softmax", "LayerNormalization")
"""Operations whose outputs lose too much precision with 8 bits."""


def quantize_static(source: Path, target: Path, samples: NDArray[np.float32], reduce_range: bool = False) -> None:
    r"""Writes a file whose layers compute in 8 bits, with int8 weights and uint8 inputs.

    A number r is stored as :math:`q = \mathrm{round}(r / s) + z`. The scale s of a convolution's weights is chosen per
    channel. Dense layers have one scale per tensor, because onnxruntime takes a third longer with scales per channel.
    Activations get s and z from their smallest and largest values on the samples. :class:`Int8Nodes` selects the nodes
    that stay in float32, as do softmax and layer norm. The same file and samples yield the same bytes.

    Args:
        source: Path of an artifact in float32.
        target: Path of the file, written atomically.
        samples: Training samples (samples, \*input_shape).
        reduce_range: Whether weights use 7 bits. Sums of products with 8 bits overflow on x86 without VNNI.

    Raises:
        UserError: If all layers stay in float32.

    References:
        Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference,
        2018, section 2.
    """
    model = onnx.load(source)
    int8_nodes = Int8Nodes.from_graph(model.graph)
    if not int8_nodes.int8_layers:
        raise UserError(
            f"int8 would not change {source}: all its layers stay in float32, as the last layer and convolutions of "
            f"fewer than {_MIN_CHANNELS} channels do"
        )
    weight_overrides = [{"quant_type": QuantType.QInt8, "reduce_range": reduce_range}]
    with TemporaryDirectory() as folder, suppress_output():
        quantized_path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            str(quantized_path),
            CalibrationBatches(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(
                {*_WEIGHTED_OPS, *(QDQRegistry if int8_nodes.quantizes_all_ops else _CLIPPING_OPS)} - {*FLOAT32_OPS}
            ),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(int8_nodes.float32_nodes),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": dict.fromkeys(int8_nodes.dense_weights, weight_overrides)},
        )
        quantized_model = onnx.load(quantized_path)
    _remove_quantization(quantized_model.graph, int8_nodes.float32_outputs)
    quantized_model = run_cleanup_passes(quantized_model)
    onnx.helper.set_model_props(
        quantized_model, {entry.key: entry.value for entry in model.metadata_props if entry.key == METADATA_KEY}
    )
    with atomic_write(target) as file:
        file.write(quantized_model.SerializeToString(deterministic=True))


class CalibrationBatches(CalibrationDataReader):
    """Provides samples to onnxruntime's calibration.

    Args:
        samples: Samples (samples, ...), read in batches of 32.
    """

    def __init__(self, samples: NDArray[np.float32]) -> None:
        self._batches = iter(
            [{INPUT_NAME: samples[start : start + BATCH_SIZE]} for start in range(0, len(samples), BATCH_SIZE)]
        )

    def get_next(self) -> Any:
        """Returns the next batch, or None after the last one."""
        return next(self._batches, None)


def _remove_quantization(graph: onnx.GraphProto, names: set[str]) -> None:
    """Removes quantization and dequantization between these tensors and their consumers."""
    quantizers = {
        node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in names
    }
    dequantizers = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantizers
    }
    for node in graph.node:
        node.input[:] = [
            quantizers[dequantizers[name].input[0]].input[0] if name in dequantizers else name for name in node.input
        ]
    for node in (*quantizers.values(), *dequantizers.values()):
        graph.node.remove(node)


_DENSE_OPS = ("Gemm", "MatMul")
_WEIGHTED_OPS = ("Conv", *_DENSE_OPS)
"""Layers, whose second input is a constant."""

_CLIPPING_OPS = ("Relu", "Clip")
"""Operations that quantization performs itself if its range starts at their lower limit and includes 0."""

_MIN_CHANNELS = 4
"""Minimum number of input channels of an int8 convolution. Others stay in float32."""


@dataclass(frozen=True)
class Int8Nodes:
    """Nodes that benefit from int8 in onnxruntime. The gain itself has to be measured.

    Attributes:
        int8_layers: Layers to compute in int8.
        float32_nodes: Names of nodes in float32. These are the last layer before each output and everything after it,
            ungrouped convolutions with fewer than 4 input channels, and layers that share a constant with these.
            Products without constants (as in attention) and clips whose range excludes 0 are included too.
        float32_outputs: Outputs of dense ``int8_layers`` that neither a clip nor another int8 layer reads.
        quantizes_all_ops: Whether operations between the layers are quantized too. True if most layers are
            convolutions.
    """

    int8_layers: list[onnx.NodeProto]
    float32_nodes: set[str]
    float32_outputs: set[str]
    quantizes_all_ops: bool

    @classmethod
    def from_graph(cls, graph: onnx.GraphProto) -> Int8Nodes:
        """Selects the nodes of a graph whose nodes have names.

        Args:
            graph: Graph in float32.
        """
        constants = {tensor.name: tensor for tensor in graph.initializer}
        weighted_nodes = {node.name: node for node in graph.node if _has_weight(node, constants)}
        float32_nodes = {
            *_find_head_nodes(graph, weighted_nodes),
            *_find_narrow_convolutions(weighted_nodes, constants),
        }
        shared_constants = {
            name
            for node in weighted_nodes.values()
            if node.name in float32_nodes
            for name in node.input
            if name in constants
        }
        float32_nodes |= {node.name for node in weighted_nodes.values() if shared_constants & {*node.input}}
        float32_nodes |= {
            node.name for node in graph.node if node.op_type in _WEIGHTED_OPS and node.name not in weighted_nodes
        }
        float32_nodes |= {
            node.name for node in graph.node if node.op_type == "Clip" and not _includes_zero(node, constants)
        }
        layers = [node for node in weighted_nodes.values() if node.name not in float32_nodes]
        dense_layers = [node for node in layers if node.op_type in _DENSE_OPS]
        int8_names = {node.name for node in layers}
        consumers = (
            node
            for node in graph.node
            if node.name in int8_names or (node.op_type in _CLIPPING_OPS and node.name not in float32_nodes)
        )
        consumed_tensors = {name for node in consumers for name in node.input}
        return cls(
            layers,
            float32_nodes,
            {node.output[0] for node in dense_layers} - consumed_tensors,
            quantizes_all_ops=2 * len(dense_layers) < len(layers),
        )

    @property
    def dense_weights(self) -> list[str]:
        """Names of the weights of dense layers."""
        return [node.input[1] for node in self.int8_layers if node.op_type in _DENSE_OPS]


def _has_weight(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return node.op_type in _WEIGHTED_OPS and node.input[1] in constants


def _find_head_nodes(graph: onnx.GraphProto, weighted_nodes: Mapping[str, onnx.NodeProto]) -> set[str]:
    """Returns the nodes from the output back to the last layer on each path, including it."""
    producers = {output: node for node in graph.node for output in node.output}
    head_nodes: set[str] = set()
    pending_tensors = [graph.output[0].name]
    while pending_tensors:
        node = producers.get(pending_tensors.pop())
        if node is None or node.name in head_nodes:
            continue
        head_nodes.add(node.name)
        if node.name not in weighted_nodes:
            pending_tensors += node.input
    return head_nodes


def _find_narrow_convolutions(
    weighted_nodes: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> Iterator[str]:
    """Yields narrow convolutions without groups. onnxruntime has special kernels for grouped ones."""
    for node in weighted_nodes.values():
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type == "Conv" and groups == 1 and constants[node.input[1]].dims[1] < _MIN_CHANNELS:
            yield node.name


def _includes_zero(clip: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Returns True if the range of a clip is constant and includes 0."""
    bounds = [*clip.input, "", ""][1:3]
    if any(bound and bound not in constants for bound in bounds):
        return False
    low, high = (numpy_helper.to_array(constants[bound]).item() if bound else 0.0 for bound in bounds)
    return low <= 0 <= high

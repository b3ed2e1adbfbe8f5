"""Selects the nodes of a graph to compute in int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

DENSE_OPS = ("Gemm", "MatMul")
WEIGHTED_OPS = ("Conv", *DENSE_OPS)
"""Layers, whose second input is a constant."""

CLIPPING_OPS = ("Relu", "Clip")
"""Operations that quantization performs itself if its range starts at their lower limit and includes 0."""

MIN_CHANNELS = 4
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
            node.name for node in graph.node if node.op_type in WEIGHTED_OPS and node.name not in weighted_nodes
        }
        float32_nodes |= {
            node.name for node in graph.node if node.op_type == "Clip" and not _includes_zero(node, constants)
        }
        layers = [node for node in weighted_nodes.values() if node.name not in float32_nodes]
        dense_layers = [node for node in layers if node.op_type in DENSE_OPS]
        int8_names = {node.name for node in layers}
        consumers = (
            node
            for node in graph.node
            if node.name in int8_names or (node.op_type in CLIPPING_OPS and node.name not in float32_nodes)
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
        return [node.input[1] for node in self.int8_layers if node.op_type in DENSE_OPS]


def _has_weight(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return node.op_type in WEIGHTED_OPS and node.input[1] in constants


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
        if node.op_type == "Conv" and groups == 1 and constants[node.input[1]].dims[1] < MIN_CHANNELS:
            yield node.name


def _includes_zero(clip: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Returns True if the range of a clip is constant and includes 0."""
    bounds = [*clip.input, "", ""][1:3]
    if any(bound and bound not in constants for bound in bounds):
        return False
    low, high = (numpy_helper.to_array(constants[bound]).item() if bound else 0.0 for bound in bounds)
    return low <= 0 <= high

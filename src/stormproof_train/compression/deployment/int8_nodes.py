"""Which nodes of a graph compute in 8 bits, and which take longer in them, or lose too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

DENSE_OPS = ("Gemm", "MatMul")
WEIGHTED_OPS = ("Conv", *DENSE_OPS)
"""Layers, where the second of their inputs is a constant."""

CLIPPING_OPS = ("Relu", "Clip")
"""What 8 bits do by themselves, with a range that begins where it clips, if 0 is in it."""

MIN_CHANNELS = 4
"""That a convolution in 8 bits takes in; one of fewer stays in float32."""


@dataclass(frozen=True)
class Int8Nodes:
    """What of a network gains by 8 bits in onnxruntime; how much, it takes a measurement to know.

    Attributes:
        int8_layers: those that compute in 8 bits.
        float32_nodes: names of nodes in float32: the last layer on each way to the output and all after it,
            convolutions of fewer than 4 channels unless they are by groups, layers that share a constant with one of
            these, products of what are no constants, as in attention, and clips whose range is without 0.
        float32_outputs: what dense layers among ``int8_layers`` give in float32: that which neither a clip nor another
            of ``int8_layers`` takes.
        quantizes_all_ops: whether also what lies between the layers is in 8 bits, as it is where most are convolutions.
    """

    int8_layers: list[onnx.NodeProto]
    float32_nodes: set[str]
    float32_outputs: set[str]
    quantizes_all_ops: bool

    @classmethod
    def from_graph(cls, graph: onnx.GraphProto) -> Int8Nodes:
        """Looks at a graph whose nodes have names.

        Args:
            graph: in float32.
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
    """From the output back to the first layer on each way, which is one of them."""
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
    """Those by groups are not: onnxruntime has a way of its own to compute them."""
    for node in weighted_nodes.values():
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type == "Conv" and groups == 1 and constants[node.input[1]].dims[1] < MIN_CHANNELS:
            yield node.name


def _includes_zero(clip: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether 0 is in its range, which has to be known."""
    bounds = [*clip.input, "", ""][1:3]
    if any(bound and bound not in constants for bound in bounds):
        return False
    low, high = (numpy_helper.to_array(constants[bound]).item() if bound else 0.0 for bound in bounds)
    return low <= 0 <= high

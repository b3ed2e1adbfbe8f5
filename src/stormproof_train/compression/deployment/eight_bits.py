"""Which nodes of a graph compute in 8 bits, and which would only take longer in them, or lose too much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

DENSE = ("Gemm", "MatMul")
WEIGHTED = ("Conv", *DENSE)
"""Layers, where the second of their inputs is a constant."""

CLIPPING = ("Relu", "Clip")
"""What 8 bits do by themselves, with a range that begins where it clips."""

FEWEST = 4
"""Channels that a convolution in 8 bits takes in."""


@dataclass(frozen=True)
class EightBits:
    """What onnxruntime computes in 8 bits at least as fast as in float32.

    Attributes:
        layers: those that do.
        full: names of nodes in float32: the last layer on each way to the output and all after it, convolutions of
            fewer than 4 channels, products of what are no constants, as in attention.
        given_in_full: what dense layers among ``layers`` give in float32: that which neither a ReLU nor another of
            them takes.
        between: whether also what lies between the layers is in 8 bits, as it is where most are convolutions.
    """

    layers: list[onnx.NodeProto]
    full: set[str]
    given_in_full: set[str]
    between: bool

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> EightBits:
        """Looks at a graph whose nodes have names.

        Args:
            graph: in float32.
        """
        weighted = _weighted(graph)
        full = {*_head(graph, weighted), *_of_few_channels(graph, weighted), *_products(graph, weighted)}
        layers = [node for node in weighted.values() if node.name not in full]
        dense = [node for node in layers if node.op_type in DENSE]
        eight_bits = {node.name for node in layers}
        taking = (node for node in graph.node if node.op_type in CLIPPING or node.name in eight_bits)
        taken = {name for node in taking for name in node.input}
        return cls(layers, full, {node.output[0] for node in dense} - taken, between=2 * len(dense) < len(layers))

    @property
    def dense_weights(self) -> list[str]:
        """Names of the weights of dense layers."""
        return [node.input[1] for node in self.layers if node.op_type in DENSE]


def _weighted(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    constants = {each.name for each in graph.initializer}
    return {node.name: node for node in graph.node if node.op_type in WEIGHTED and node.input[1] in constants}


def _head(graph: onnx.GraphProto, weighted: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """From the output back to the first layer on each way, which is one of them."""
    makers = {output: node for node in graph.node for output in node.output}
    wanted = [graph.output[0].name]
    while wanted:
        node = makers.get(wanted.pop())
        if node is None:
            continue
        yield node.name
        if node.name not in weighted:
            wanted += node.input


def _of_few_channels(graph: onnx.GraphProto, weighted: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """Those by groups are not: onnxruntime has a way of its own to compute them."""
    weights = {each.name: each for each in graph.initializer}
    for node in weighted.values():
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        if node.op_type == "Conv" and groups == 1 and weights[node.input[1]].dims[1] < FEWEST:
            yield node.name


def _products(graph: onnx.GraphProto, weighted: dict[str, onnx.NodeProto]) -> Iterator[str]:
    return (node.name for node in graph.node if node.op_type in DENSE and node.name not in weighted)

"""Which nodes of a graph compute in 8 bits, and which take longer in them, or lose too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

DENSE = ("Gemm", "MatMul")
WEIGHTED = ("Conv", *DENSE)
"""Layers, where the second of their inputs is a constant."""

CLIPPING = ("Relu", "Clip")
"""What 8 bits do by themselves, with a range that begins where it clips, if 0 is in it."""

FEWEST_CHANNELS = 4
"""That a convolution in 8 bits takes in; one of fewer stays in float32."""


@dataclass(frozen=True)
class EightBits:
    """What of a network gains by 8 bits in onnxruntime; how much, it takes a measurement to know.

    Attributes:
        layers: those that compute in 8 bits.
        full: names of nodes in float32: the last layer on each way to the output and all after it, convolutions of
            fewer than 4 channels unless they are by groups, layers that share a constant with one of these, products
            of what are no constants, as in attention, and clips whose range is without 0.
        given_in_full: what dense layers among ``layers`` give in float32: that which neither a clip nor another of
            ``layers`` takes.
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
        constants = {each.name: each for each in graph.initializer}
        weighted = {each.name: each for each in graph.node if _has_weight(each, constants)}
        full = {*_head(graph, weighted), *_of_few_channels(weighted, constants)}
        shared = {name for node in weighted.values() if node.name in full for name in node.input if name in constants}
        full |= {node.name for node in weighted.values() if shared & {*node.input}}
        full |= {each.name for each in graph.node if each.op_type in WEIGHTED and each.name not in weighted}
        full |= {each.name for each in graph.node if each.op_type == "Clip" and not _has_zero(each, constants)}
        layers = [node for node in weighted.values() if node.name not in full]
        dense = [node for node in layers if node.op_type in DENSE]
        eight_bits = {node.name for node in layers}
        taking = (
            node
            for node in graph.node
            if node.name in eight_bits or (node.op_type in CLIPPING and node.name not in full)
        )
        taken = {name for node in taking for name in node.input}
        return cls(layers, full, {node.output[0] for node in dense} - taken, between=2 * len(dense) < len(layers))

    @property
    def dense_weights(self) -> list[str]:
        """Names of the weights of dense layers."""
        return [node.input[1] for node in self.layers if node.op_type in DENSE]


def _has_weight(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return node.op_type in WEIGHTED and node.input[1] in constants


def _head(graph: onnx.GraphProto, weighted: Mapping[str, onnx.NodeProto]) -> set[str]:
    """From the output back to the first layer on each way, which is one of them."""
    makers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    wanted = [graph.output[0].name]
    while wanted:
        node = makers.get(wanted.pop())
        if node is None or node.name in found:
            continue
        found.add(node.name)
        if node.name not in weighted:
            wanted += node.input
    return found


def _of_few_channels(
    weighted: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> Iterator[str]:
    """Those by groups are not: onnxruntime has a way of its own to compute them."""
    for node in weighted.values():
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        if node.op_type == "Conv" and groups == 1 and constants[node.input[1]].dims[1] < FEWEST_CHANNELS:
            yield node.name


def _has_zero(clip: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether 0 is in its range, which has to be known."""
    ends = [*clip.input, "", ""][1:3]
    if any(each and each not in constants for each in ends):
        return False
    low, high = (numpy_helper.to_array(constants[each]).item() if each else 0.0 for each in ends)
    return low <= 0 <= high

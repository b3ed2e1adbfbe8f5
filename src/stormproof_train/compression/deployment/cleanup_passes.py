"""Leaves out of an ONNX file what no runtime reads: of a small network that is a tenth of it."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass


def lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the shortest names inside, equal small constants once, and unread ones not at all.

    What goes in and what comes out keep their names, and so do the constants' values and the nodes' order: the same
    numbers come out. The shapes between the nodes go, which a runtime finds by itself.

    Args:
        model: it stays as it is.

    Example:
        >>> from onnx.parser import parse_model
        >>> model = parse_model('''<ir_version: 10, opset_import: ["": 20]> agraph (float[2] input) => (float[2] values)
        ... <float[2] shift = {1.0, 2.0}, float[2] same = {1.0, 2.0}> {
        ...     shifted = Add(input, shift)
        ...     values = Mul(shifted, same)
        ... }''')
        >>> made = lean(model)
        >>> [list(node.input) for node in made.graph.node], len(made.graph.initializer)
        ([['input', '0'], ['1', '0']], 1)
    """
    made = ir.from_proto(model)
    for each in (RemoveUnusedNodesPass(), DeduplicateInitializersPass()):
        each(made)
    graphs = [made.graph, *made.graph.subgraphs()]
    nodes = list(made.graph.all_nodes())
    inside: list[ir.Value] = [each for graph in graphs for each in graph.initializers.values()]
    inside += [each for node in nodes for each in node.outputs]
    given = {id(each): each for graph in graphs for each in (*graph.inputs, *graph.outputs)}
    taken = {each.name for each in (*inside, *given.values())}  # a name has to be free when it is given
    free = (name for number in itertools.count() if (name := np.base_repr(number, 36).lower()) not in taken)
    for each in inside:
        if id(each) not in given:
            each.name, each.type, each.shape = next(free), None, None
    for node in nodes:
        node.name = None
    return ir.to_proto(made)

"""Leaves out of an ONNX file what no runtime reads: of a small network that is a tenth of it."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass


def run_cleanup_passes(model: onnx.ModelProto) -> onnx.ModelProto:
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
        >>> made = run_cleanup_passes(model)
        >>> [list(node.input) for node in made.graph.node], len(made.graph.initializer)
        ([['input', '0'], ['1', '0']], 1)
    """
    ir_model = ir.from_proto(model)
    for item in (RemoveUnusedNodesPass(), DeduplicateInitializersPass()):
        item(ir_model)
    graphs = [ir_model.graph, *ir_model.graph.subgraphs()]
    nodes = list(ir_model.graph.all_nodes())
    inner_values: list[ir.Value] = [item for graph in graphs for item in graph.initializers.values()]
    inner_values += [item for node in nodes for item in node.outputs]
    interface_values = {id(item): item for graph in graphs for item in (*graph.inputs, *graph.outputs)}
    used_names = {
        item.name for item in (*inner_values, *interface_values.values())
    }  # a name has to be free when it is given
    free_names = (name for number in itertools.count() if (name := np.base_repr(number, 36).lower()) not in used_names)
    for item in inner_values:
        if id(item) not in interface_values:
            item.name, item.type, item.shape = next(free_names), None, None
    for node in nodes:
        node.name = None
    return ir.to_proto(ir_model)

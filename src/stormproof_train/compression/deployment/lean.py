"""Leaves out of an ONNX file what no runtime reads: of a small network that is a tenth of it."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import onnx


def make_lean(model: onnx.ModelProto) -> None:
    """Gives all that lies inside a graph the shortest names, keeps equal constants once, and unread ones not at all.

    What goes in and what comes out keep their names, and so do the constants' values and the nodes' order: the same
    numbers come out. The shapes between the nodes go, which a runtime finds by itself. A model with branches or loops,
    whose own graphs know the names outside, stays as it is.

    Args:
        model: changed in place.

    Example:
        >>> from onnx.parser import parse_model
        >>> model = parse_model('''<ir_version: 10, opset_import: ["": 20]> agraph (float[2] input) => (float[2] values)
        ... <float[2] shift = {1.0, 2.0}, float[2] same = {1.0, 2.0}> {
        ...     shifted = Add(input, shift)
        ...     values = Mul(shifted, same)
        ... }''')
        >>> make_lean(model)
        >>> [list(node.input) for node in model.graph.node], len(model.graph.initializer)
        ([['input', '0'], ['1', '0']], 1)
    """
    graph = model.graph
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return
    graph.ClearField("value_info")
    _leave_out_constants(graph)
    kept = {each.name for each in (*graph.input, *graph.output)} | {""}  # and arguments that are left out
    names = {each: each for each in kept}
    free = (name for number in itertools.count() if (name := np.base_repr(number, 36).lower()) not in kept)

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(free)
        return names[name]

    for each in graph.initializer:
        each.name = short(each.name)
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short(each) for each in node.input]
        node.output[:] = [short(each) for each in node.output]


def _leave_out_constants(graph: onnx.GraphProto) -> None:
    """Those that nobody reads, and the second of two that are equal."""
    read = {name for node in graph.node for name in node.input}
    given = {each.name for each in graph.output}
    first: dict[bytes, str] = {}
    instead = {name: name for name in given}
    for each in [each for each in graph.initializer if each.name in read - given]:
        unnamed = onnx.TensorProto()
        unnamed.CopyFrom(each)
        unnamed.ClearField("name")
        content = hashlib.sha256(unnamed.SerializeToString(deterministic=True)).digest()
        instead[each.name] = first.setdefault(content, each.name)
    for each in [each for each in graph.initializer if instead.get(each.name) != each.name]:
        graph.initializer.remove(each)
    for node in graph.node:
        node.input[:] = [instead.get(each, each) for each in node.input]

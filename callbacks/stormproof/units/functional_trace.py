"""Traces activations that are applied as functions, and the layers that consume their outputs.

Module hooks cannot observe either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from stormproof.internal_errors import isolated_until_error
from stormproof.units.callers_line import call_at_callers_line
from stormproof.units.unit_axis import weight_shape

ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "softsign", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink", "log_sigmoid",
    "sigmoid", "special_expit", "tanh", "threshold", "glu", "softmax", "softmin", "log_softmax",
    "clamp", "clamp_min", "clip",
})  # fmt: skip
_RESHAPE = frozenset({"flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze"})
_PERMUTE = frozenset({"permute", "transpose", "movedim"})
_REDUCE = frozenset({"mean", "amax"})
_VALUE_CHANGING = frozenset({
    "pad", "amax", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
})  # fmt: skip
"""Functions that may change whether a unit is constant, unless its constant value is the 0 of a ReLU."""
_UNIT_PRESERVING = _RESHAPE | _PERMUTE | _REDUCE | _VALUE_CHANGING | frozenset({
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "batch_norm",
    "contiguous", "clone", "to", "type", "float", "half", "bfloat16", "double", "mul", "div", "square",
    "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
})  # fmt: skip
"""Functions whose outputs have the same units as their inputs. A product is a gate."""

ActivationKey = tuple[str, str | None]
"""Name of a watched module or consuming layer, and name of the layer before it."""

Positions = torch.Tensor | None
"""Indices of the units in the input of a layer, ``(units, positions)``. None if the units are in order."""


@dataclass(eq=False)
class TracedCall:
    """One call of a layer or of an activation.

    Attributes:
        layer: Name of the layer. For an activation, the layer whose output it takes or, if unknown, the layer called
            before it.
        function: Name of the activation, such as ``relu``. None for a layer.
        source: For an activation, the call that produced its input, if known.
        watched_module: For an activation, the module whose output is watched. None if it is applied as a function.
        preceding_layer_calls: Number of layer calls before this call.
        untracked_uses: Number of functions that used the output, without ``consumers`` and functions that preserve
            units.
        consumers: Layers that used the output, with the positions of the units.
    """

    layer: str | None
    function: str | None = None
    source: TracedCall | None = None
    watched_module: str | None = None
    preceding_layer_calls: int = 0
    untracked_uses: int = 0
    consumers: dict[str, Positions] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitLayout:
    """Position of units in a tensor.

    Attributes:
        call: Call that computed the units.
        dimension: Dimension of the units, from the end (negative).
        count: Number of units.
        units: Index of the unit at each position of this dimension, ``(positions,)``. None if the units are in order.
        zero_only: Whether the tensor only shows if a unit is always 0.
    """

    call: TracedCall
    dimension: int
    count: int
    units: torch.Tensor | None = None
    zero_only: bool = False

    def positions(self) -> Positions:
        """Returns the positions of each unit."""
        return None if self.units is None else self.units.argsort(stable=True).view(self.count, -1)


class FunctionalTrace(TorchFunctionMode):
    """Traces the outputs of layers and activations to the layers that consume them, for one batch.

    Args:
        resolve_source: Called with the name of an activation and the shape of its output. Returns the layer before it
            and the dimension of its units, or None if unknown.

    Attributes:
        error: First error while tracing. Tracing ends after it.
    """

    def __init__(self, resolve_source: Callable[[str, torch.Size], tuple[str, int] | None]) -> None:
        super().__init__()
        self.error: Exception | None = None
        self._resolve_source = resolve_source
        self._layouts = WeakTensorKeyDictionary()
        self._activation_calls: list[TracedCall] = []
        self._layer_calls: defaultdict[str, list[TracedCall]] = defaultdict(list)
        self._input_calls: defaultdict[str, list[TracedCall | None]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls ``func`` and records the layout of its output."""
        kwargs = kwargs or {}
        input_layouts: list[tuple[UnitLayout, torch.Size]] = []
        isolated_until_error(self, self._add_layouts)(input_layouts, (*args, *kwargs.values()))
        output = call_at_callers_line(func, args, kwargs)
        if any(True for _ in _iter_tensors((output,))):
            isolated_until_error(self, self._record_call)(func, args, kwargs, input_layouts, output)
        return output

    def _add_layouts(self, layouts: list[tuple[UnitLayout, torch.Size]], values: Any) -> None:
        """Adds the known layouts of tensors and their shapes."""
        for tensor in _iter_tensors(values):
            layout = self.layout_of(tensor)
            if layout is not None:
                layouts.append((layout, weight_shape(tensor)))

    def _record_call(
        self, func: Any, args: Any, kwargs: Any, input_layouts: Sequence[tuple[UnitLayout, torch.Size]], output: Any
    ) -> None:
        """Records the layout of the output of a function."""
        name = getattr(func, "__name__", "").strip("_")
        layout = None
        if name in _UNIT_PRESERVING and input_layouts and isinstance(output, torch.Tensor) and output.numel():
            layout = _propagate_layout(name, func, input_layouts, args, kwargs, output)
        if layout is None:
            for input_layout, _ in input_layouts:
                input_layout.call.untracked_uses += 1
            is_real = isinstance(output, torch.Tensor) and output.is_floating_point()
            if name in ACTIVATIONS and is_real and output.ndim >= 2:
                layout = self._trace_activation(name, output, input_layouts[0][0] if input_layouts else None)
        self._set_layout(output, layout)

    def layout_of(self, tensor: Any) -> UnitLayout | None:
        """Returns the layout of ``tensor``, or None if unknown."""
        return self._layouts.get(tensor) if isinstance(tensor, torch.Tensor) else None

    def record_layer(self, name: str, inputs: Any, output: Any, axis: int | None) -> UnitLayout | None:
        """Records a call of a layer, whose units are along dimension ``axis``. Returns the layout of its input."""
        input_layout = self.layout_of(inputs)
        self._input_calls[name].append(input_layout.call if input_layout else None)
        call = TracedCall(name)
        self._layer_calls[name].append(call)
        self._set_layout(output, None if axis is None else UnitLayout(call, axis, weight_shape(output)[axis]))
        return input_layout

    def record_activation(
        self, name: str, function: str, layer: str | None, output: torch.Tensor, axis: int
    ) -> TracedCall:
        """Records the output of the watched module ``name``, which applies ``function`` unless another was traced."""
        layout = self.layout_of(output)
        call = layout.call if layout and layout.call.function and layout.call.watched_module is None else None
        if call is None:
            if layout is not None:
                layout.call.untracked_uses += 1
            call = TracedCall(layer, function)
            self._activation_calls.append(call)
        call.watched_module = name
        self._set_layout(output, UnitLayout(call, axis, weight_shape(output)[axis]))
        return call

    def unconsumed_activations(self) -> list[str]:
        """Returns activations applied as functions whose consuming layer is unknown.

        Activations after the last layer are excluded.
        """
        calls = [call for call in self._activation_calls if call.watched_module is None and call.source is not None]
        return [
            f"{call.function} after {call.layer}"
            for call in calls
            if not call.consumers and call.preceding_layer_calls < self._layer_call_count
        ]

    def consumers(self) -> dict[ActivationKey, Mapping[str, Positions] | None]:
        """Returns the layers that consume the units, by key. None if a source or consumer is unknown."""
        calls_by_key: defaultdict[ActivationKey, list[TracedCall]] = defaultdict(list)
        for call in self._activation_calls:
            name = call.watched_module or next(iter(call.consumers), None)  # the first of several consumers
            if name is not None:
                calls_by_key[name, call.layer].append(call)
        return {key: self._resolve_consumers(key[1], calls) for key, calls in calls_by_key.items()}

    def _resolve_consumers(self, layer: str | None, calls: Sequence[TracedCall]) -> Mapping[str, Positions] | None:
        """Returns all layers that consume the outputs of ``calls``, or None if a use is unknown."""
        consumers = {name: positions for call in calls for name, positions in call.consumers.items()}
        layer_calls = self._layer_calls[layer] if layer is not None else []
        sources = [call.source for call in calls]
        is_complete = bool(consumers) and len(layer_calls) == len(calls)
        is_complete = is_complete and all(
            source is not None and source in layer_calls and source.untracked_uses == 1 for source in sources
        )
        is_complete = is_complete and not any(call.untracked_uses for call in calls)
        is_complete = is_complete and all(call in calls for name in consumers for call in self._input_calls[name])
        return consumers if is_complete else None

    def _trace_activation(self, name: str, output: torch.Tensor, source: UnitLayout | None) -> UnitLayout | None:
        """Records a functional activation and returns the layout of its output, or None if unknown."""
        shape = weight_shape(output)
        if source is not None and source.units is None and source.call.function is None:
            layer, axis = source.call.layer, source.dimension
        else:
            resolved = self._resolve_source(name, shape)
            if resolved is None:
                return None
            layer, axis = resolved
        call = TracedCall(layer, name, source.call if source else None, preceding_layer_calls=self._layer_call_count)
        self._activation_calls.append(call)
        return UnitLayout(call, axis, shape[axis])

    @property
    def _layer_call_count(self) -> int:
        return sum(map(len, self._layer_calls.values()))

    def _set_layout(self, output: Any, layout: UnitLayout | None) -> None:
        if layout is not None:
            self._layouts[output] = layout
        elif isinstance(output, torch.Tensor):
            self._layouts.pop(output, None)  # an in-place function invalidates the layout


def _propagate_layout(
    name: str,
    func: Any,
    input_layouts: Sequence[tuple[UnitLayout, torch.Size]],
    args: Any,
    kwargs: Any,
    output: torch.Tensor,
) -> UnitLayout | None:
    """Returns the layout of the output of a function that preserves units, or None if unknown."""
    layout, shape = next((candidate for candidate in input_layouts if candidate[0].call.function), input_layouts[0])
    output_layout = _locate_units(name, func, layout, shape, args, kwargs, output)
    if output_layout is None:
        return None
    if name in _VALUE_CHANGING and layout.call.function and layout.call.watched_module is None:
        if layout.call.function != "relu":
            return None
        output_layout = replace(output_layout, zero_only=True)
    for candidate, _ in input_layouts:
        candidate.call.untracked_uses += candidate is not layout
    if name == "batch_norm" and layout.call.function:
        layout.call.untracked_uses += 1  # a batch norm shifts zero
    return output_layout


def _locate_units(
    name: str, func: Any, layout: UnitLayout, shape: torch.Size, args: Any, kwargs: Any, output: torch.Tensor
) -> UnitLayout | None:
    """Returns the layout of ``output``, or None if no dimension contains the units."""
    if name not in _RESHAPE | _PERMUTE | _REDUCE:
        is_unchanged = output.ndim == len(shape) and weight_shape(output)[layout.dimension] == shape[layout.dimension]
        return layout if is_unchanged else None
    if output.is_nested:
        return None
    unit_indices = torch.arange(layout.count)
    unit_markers = unit_indices if layout.units is None else layout.units
    unit_markers = unit_markers.view(-1, *(1,) * (-1 - layout.dimension)).expand(shape)
    if name in _RESHAPE:
        unit_markers = unit_markers.reshape(output.shape)
    elif name in _PERMUTE:
        unit_markers = func(unit_markers, *args[1:], **kwargs)
    else:
        unit_markers = unit_markers.amax(*args[1:], **{key: kwargs[key] for key in ("dim", "keepdim") if key in kwargs})
    for dimension in range(-1, -unit_markers.ndim, -1):  # the first dimension is the batch
        rows = unit_markers.movedim(dimension, -1)
        row = rows[(0,) * (rows.ndim - 1)]
        rows_are_equal = not any(rows.stride()[:-1]) or bool((rows == row).all())
        if rows_are_equal and len(set(row.bincount(minlength=layout.count).tolist())) == 1:
            return replace(layout, dimension=dimension, units=None if torch.equal(row, unit_indices) else row.clone())
    return None


def _iter_tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor))

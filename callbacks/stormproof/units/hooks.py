"""Hooks that record the minimum and maximum output of each unit of a network.

Hooks are registered once and record only while :attr:`ActivationHooks.active` is True. ``torch.compile`` treats this
flag as a guard, so that hooks cause no graph breaks. They store only tensors, which the callback collects after each
batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn

from stormproof.internal_errors import describe_error, isolated
from stormproof.lightning.layer_names import strip_wrappers
from stormproof.units.functional_trace import ActivationKey, FunctionalTrace, Positions, UnitLayout
from stormproof.units.maxout_pieces import MaxoutPieces, winning_pieces
from stormproof.units.module_kinds import (
    BATCH_NORMS,
    RECURRENT,
    count_samples,
    flatten_nested,
    is_activation,
    is_compiled,
    is_layer,
    is_watched,
    makes_no_units,
    output_tensor,
)
from stormproof.units.running_min_max import compute_extremes
from stormproof.units.transforms import has_values, is_transforming, plain_values
from stormproof.units.unit_axis import output_units, unit_axis, unit_dimension, weight_shape
from stormproof.units.watch_point import ActivationInput, BatchExtremes, WatchPoint

WHOLE_NETWORK = "all modules"
"""Name of errors that concern the whole network."""
SPARSITY_INPUTS = 16
"""Inputs of a batch from which sparsity is estimated. Counting all zeros takes longer than computing both extremes."""


class TransientHook:
    """A hook of a module that becomes inactive in copies and pickles of the network.

    Args:
        hooks: Hooks of the network. The function is called while they are active.
        name: Name of the module.
        module: The module.
        function: Function of the arguments and the output of the module.
    """

    def __init__(
        self, hooks: ActivationHooks, name: str, module: nn.Module, function: Callable[[Any, Any], None]
    ) -> None:
        self._hooks, self._name, self._module, self._function = hooks, name, module, function

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Calls the function, and records an error of it."""
        if not self._hooks.active or module is not self._module:  # hooks are copied with the network
            return
        if torch.compiler.is_compiling():
            self._function(arguments, output)
        else:
            isolated(self._function, partial(self._hooks.add_error, self._name))(arguments, output)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as a function of the standard library that accepts any arguments and does nothing."""
        return getattr, (nullcontext(), "__exit__")


class ActivationHooks:
    """Watch points of a network and their hooks.

    Args:
        network: Network. Only its hooks are changed.

    Attributes:
        active: Whether the hooks record at this moment.
        records_batch: Whether the hooks record the current batch.
        counts_zeros: Whether the hooks also record the fraction of zeros.
        records_magnitudes: Whether the hooks also record the mean absolute output of each unit.
        output_points: Watched modules by name.
        input_points: All layers by name. Layers whose input is a functional activation are watched.
        batch_norms: Batch norms by name.
        consumers: Layers that consume the units, by key. None if a source or consumer is unknown.
        unconsumed_activations: Functional activations whose consuming layer is unknown.
        has_recorded: Whether the hooks have recorded a batch.
        errors: Descriptions of the first errors while measuring, by name of the module.
        seconds: Seconds that the hooks took to record the current batch. 0 in a compiled network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.active = self.records_batch = False
        self.counts_zeros = False
        self.records_magnitudes = False
        self.output_points: dict[str, WatchPoint] = {}
        self.input_points: dict[str, WatchPoint] = {}
        self.batch_norms: dict[str, nn.Module] = {}
        self.consumers: dict[ActivationKey, Mapping[str, Positions] | None] = {}
        self.unconsumed_activations: list[str] = []
        self.has_recorded = False
        self.errors: dict[str, str] = {}
        self.seconds = 0.0
        self._last_layer: str | None = None
        self._last_norm: str | None = None
        self._last_units: tuple[int, int] | None = None
        self._traced_stages: set[str] = set()
        self._trace_context = ExitStack()
        self._functional_trace: FunctionalTrace | None = None
        self._handles: list[Any] = []
        modules = [(strip_wrappers(name), module) for name, module in network.named_modules() if name]
        self.is_compiled = any(is_compiled(module) for module in network.modules())
        for name, module in modules:
            if isinstance(module, torch.jit.ScriptModule) or ".parametrizations." in name:
                continue
            if is_watched(module):
                watch_point = self.output_points[name] = WatchPoint(name, module, type(module).__name__.lower())
                function = partial(self._record_output, watch_point)
            elif is_layer(module):
                watch_point = self.input_points[name] = WatchPoint(name, module)
                function = partial(self._record_input, watch_point)
            elif isinstance(module, BATCH_NORMS):
                self.batch_norms[name] = module
                function = partial(self._record_norm, name)
            else:
                continue
            self._handles.append(module.register_forward_hook(TransientHook(self, name, module, function)))

    def __iter__(self) -> Iterator[WatchPoint]:
        """Yields all watch points."""
        yield from self.output_points.values()
        yield from (watch_point for watch_point in self.input_points.values() if watch_point.activation_inputs)

    def get(self, name: str) -> WatchPoint:
        """Returns the watch point ``name``."""
        return self.output_points.get(name) or self.input_points[name]

    def has(self, name: str) -> bool:
        """Returns True if ``name`` is a watch point."""
        return name in self.output_points or name in self.input_points

    def begin_batch(
        self,
        stage: str,
        *,
        records_extremes: bool,
        counts_zeros: bool = False,
        records_magnitudes: bool = False,
        is_traceable: bool = True,
    ) -> None:
        """Starts a batch. Records it if requested, and traces it if it is the first of its stage.

        Args:
            stage: Name of the stage.
            records_extremes: Whether to record minimum and maximum outputs.
            counts_zeros: Whether to record the fraction of zeros.
            records_magnitudes: Whether to record mean absolute outputs.
            is_traceable: Whether the batch may run eagerly under a ``TorchFunctionMode``.
        """
        is_traced = is_traceable and stage not in self._traced_stages
        self.records_batch = self.active = records_extremes or records_magnitudes or is_traced
        if is_traced:
            self._traced_stages.add(stage)
            self._trace_context.enter_context(self._trace_batch())
        if self.records_batch:
            self.has_recorded = True
            self.seconds = 0.0
            self.counts_zeros, self.records_magnitudes = counts_zeros, records_magnitudes
            self._last_layer, self._last_units, self._last_norm = None, None, None
            for watch_point in (*self.output_points.values(), *self.input_points.values()):
                watch_point.extremes_by_source, watch_point.call_index = {}, 0

    def end_batch(self) -> None:
        """Ends a batch."""
        self._trace_context.close()
        self.active = self.records_batch = False

    def reset_coverage(self) -> None:
        """Resets the record of called watch points. Tracing runs a compiled network eagerly, which calls all hooks."""
        self.has_recorded = False
        for watch_point in self:
            watch_point.was_called = False

    def uncalled_names(self) -> list[str]:
        """Returns watch points that were not called, although every forward pass should call them."""
        expected_points = [
            watch_point for watch_point in self if watch_point.activation_inputs or is_activation(watch_point.module)
        ]
        return (
            [watch_point.name for watch_point in expected_points if not watch_point.was_called]
            if self.has_recorded
            else []
        )

    def ambiguous_names(self) -> list[str]:
        """Returns watch points without a known unit dimension, and functional activations without a known consumer."""
        return [
            *(watch_point.name for watch_point in self.output_points.values() if watch_point.is_ambiguous),
            *self.unconsumed_activations,
        ]

    def add_error(self, name: str, error: Exception) -> None:
        """Adds the first error while measuring a module. Its records are incomplete."""
        self.errors.setdefault(name, describe_error(error))

    def has_error(self, name: str) -> bool:
        """Returns whether an error makes the records of a module incomplete."""
        return name in self.errors or WHOLE_NETWORK in self.errors

    def remove(self) -> None:
        """Removes the hooks. Can be called during a batch."""
        self.end_batch()
        for handle in self._handles:
            handle.remove()

    def pop_batch(self) -> Iterator[tuple[WatchPoint, str | None, BatchExtremes]]:
        """Yields and discards the records of the last batch."""
        for watch_point in self:
            extremes_by_source, watch_point.extremes_by_source = watch_point.extremes_by_source, {}
            watch_point.was_called |= bool(extremes_by_source)  # includes layers that consume functional activations
            yield from (
                (watch_point, source_layer, batch_extremes)
                for source_layer, batch_extremes in extremes_by_source.items()
            )

    def discard_batch(self) -> None:
        """Discards the records of the last batch."""
        for _ in self.pop_batch():
            pass

    @contextmanager
    def _trace_batch(self) -> Iterator[None]:
        """Traces functional activations and consumers while a batch runs in this context."""
        uses_dynamo = "torch._dynamo" in sys.modules  # otherwise nothing is compiled
        with (
            torch.compiler.set_stance("force_eager") if uses_dynamo else nullcontext(),
            FunctionalTrace(self._resolve_source) as functional_trace,
        ):
            self._functional_trace = functional_trace
            yield
        self._functional_trace = None
        if functional_trace.error is not None:
            self.add_error("activations that are applied as functions", functional_trace.error)
            return
        self.unconsumed_activations = list(
            dict.fromkeys([*self.unconsumed_activations, *functional_trace.unconsumed_activations()])
        )
        for key, consumers in functional_trace.consumers().items():
            previous = self.consumers.get(key, consumers)
            self.consumers[key] = None if previous is None or consumers is None else {**previous, **consumers}

    def _resolve_source(self, function: str, shape: torch.Size) -> tuple[str, int] | None:
        """Returns the last called layer and the dimension of the units, or None if unknown."""
        axis = unit_axis(shape, self._last_units, gated=function == "glu")
        return None if self._last_layer is None or axis is None else (self._last_layer, axis)

    def _locate_units(
        self, watch_point: WatchPoint, output: Any, tensor: torch.Tensor
    ) -> tuple[str | None, int | None]:
        """Returns the layer before a watched module and the dimension of the units, or None if unknown."""
        layout = self._functional_trace.layout_of(output) if self._functional_trace is not None else None
        if (
            layout is not None
            and layout.units is None
            and layout.call.watched_module is None
            and layout.call.source is not None
        ):
            watch_point.traced_sources[self._last_layer] = layout.call.layer, layout.dimension
        if self._last_layer in watch_point.traced_sources:
            return watch_point.traced_sources[self._last_layer]
        return self._last_layer, self._unit_axis(watch_point.module, weight_shape(tensor))

    def _unit_axis(self, module: nn.Module, shape: torch.Size) -> int | None:
        """Returns the dimension of the units in the output of a watched module, or None if unknown."""
        if isinstance(module, RECURRENT):
            return -1
        maxout_pieces = next((child for child in module.children() if isinstance(child, MaxoutPieces)), None)
        if maxout_pieces is not None:  # the dimension before the pieces, which the output lacks
            return maxout_pieces.dim - 1 - len(shape) if maxout_pieces.dim >= 0 else maxout_pieces.dim
        return unit_axis(shape, self._last_units, gated=isinstance(module, nn.GLU))

    def _record_output(self, watch_point: WatchPoint, arguments: Any, output: Any) -> None:
        """Records the output of a watched module."""
        module = watch_point.module
        watch_point.was_called = True
        tensor = output_tensor(output)
        if tensor is None and is_activation(module):
            kind = output.dtype if isinstance(output, torch.Tensor) else type(output).__name__
            self.errors.setdefault(watch_point.name, f"needs outputs of floating-point numbers, got {kind}")
        if tensor is None or tensor.ndim < 2 or makes_no_units(module, arguments, output):
            return
        if self._last_layer is None and not is_activation(module):  # the module preprocesses data
            return
        if isinstance(module, MaxoutPieces):
            pieces = winning_pieces(flatten_nested(tensor), module.dim)
            self._record(watch_point, self._last_layer, pieces, -1, tensor.size(0))
            return
        if isinstance(module, RECURRENT):  # a recurrent network is a layer and an activation
            self._last_layer, self._last_units, self._last_norm = watch_point.name, (-1, tensor.shape[-1]), None
        source_layer, axis = self._locate_units(watch_point, output, tensor)
        if axis is None:
            watch_point.is_ambiguous = True
            return
        self._record(watch_point, source_layer, tensor, axis, count_samples(module, output, tensor))
        if self._functional_trace is not None and isinstance(output, torch.Tensor):
            call = self._functional_trace.record_activation(
                watch_point.name, watch_point.function, source_layer, output, axis
            )
            if not is_activation(module) and call.function is not None:
                watch_point.function = call.function

    def _record_input(self, watch_point: WatchPoint, arguments: Any, output: Any) -> None:
        """Records the input of a layer that consumes a functional activation, and that the layer was called."""
        units = output_units(watch_point.module)
        try:
            if self._functional_trace is not None and arguments:
                axis = None if units is None or not isinstance(output, torch.Tensor) else units[0]
                layout = self._functional_trace.record_layer(watch_point.name, arguments[0], output, axis)
                self._trace_input(watch_point, arguments[0], layout)
            activation_input = watch_point.current_input
            if activation_input is not None and arguments and arguments[0].is_floating_point():
                inputs = plain_values(arguments[0])
                self._record(
                    watch_point,
                    activation_input.source_layer,
                    inputs,
                    activation_input.dimension,
                    inputs.size(0),
                    activation_input,
                )
            if watch_point.activation_inputs or self._functional_trace is not None:
                watch_point.call_index += 1
        finally:
            self._last_layer, self._last_units, self._last_norm = watch_point.name, units, None

    def _record_norm(self, name: str, *_: Any) -> None:
        """Records that a batch norm was called."""
        self._last_norm = name

    def _trace_input(self, consumer: WatchPoint, inputs: torch.Tensor, input_layout: UnitLayout | None) -> None:
        """Records the input of a layer while tracing."""
        function = None if input_layout is None else input_layout.call.function
        if input_layout is None or function is None:
            consumer.has_other_inputs = True
            return
        call, positions, first_input = input_layout.call, input_layout.positions(), consumer.activation_inputs.get(0)
        if call.watched_module is None and next(iter(call.consumers), consumer.name) == consumer.name:
            consumer.has_other_inputs |= first_input is not None and first_input.source_layer != call.layer
            consumer.function = function
            device_positions = None if positions is None else positions.to(inputs.device)
            consumer.activation_inputs[consumer.call_index] = ActivationInput(
                call.layer, input_layout.dimension, device_positions, input_layout.zero_only
            )
        if input_layout.dimension == unit_dimension(consumer.module):
            call.untracked_uses -= 1
            call.consumers[consumer.name] = positions
        elif call.watched_module is None:
            call.consumers.setdefault(consumer.name, positions)

    def _record(self, *args: Any) -> None:
        """Records the outputs of one call and adds its duration to :attr:`seconds`."""
        if torch.compiler.is_compiling():
            self._record_extremes(*args)
            return
        if is_transforming():
            return
        start = perf_counter()
        self._record_extremes(*args)
        self.seconds += perf_counter() - start

    def _record_extremes(
        self,
        watch_point: WatchPoint,
        source_layer: str | None,
        tensor: torch.Tensor,
        axis: int,
        samples: int,
        activation_input: ActivationInput | None = None,
    ) -> None:
        """Adds the outputs of one call to the records of the current batch."""
        if not tensor.numel():  # an empty batch
            return
        tensor = flatten_nested(tensor)
        if not has_values(tensor) or tensor.layout is not torch.strided:
            raise TypeError(
                f"outputs of type {type(tensor).__name__}, {tensor.device}, {tensor.layout} are unsupported"
            )
        low, high = compute_extremes(tensor, axis)
        if watch_point.has_pieces or (activation_input is not None and activation_input.zero_only):
            low = torch.zeros_like(low)  # a piece that always wins is not dead
        positions = None if activation_input is None else activation_input.positions
        if positions is not None:
            low, high = low[positions].amin(1), high[positions].amax(1)
        batch_extremes = BatchExtremes(low, high, samples)
        if self.counts_zeros:
            batch_extremes.nonzero_share = tensor[:SPARSITY_INPUTS].sign().abs().mean(dtype=torch.float32)
        if self.records_magnitudes:
            magnitudes = tensor.abs().movedim(axis, -1).flatten(0, -2).mean(0)
            batch_extremes.magnitudes = magnitudes if positions is None else magnitudes[positions].mean(1)
            watch_point.batch_norms[source_layer] = self._last_norm
        previous = watch_point.extremes_by_source.get(source_layer)
        if previous is not None:
            batch_extremes.low, batch_extremes.high = (
                torch.minimum(low, previous.low),
                torch.maximum(high, previous.high),
            )
            if batch_extremes.magnitudes is not None and previous.magnitudes is not None:
                batch_extremes.magnitudes = batch_extremes.magnitudes + previous.magnitudes
        watch_point.extremes_by_source[source_layer] = batch_extremes

"""The places of a network at which units are watched, and the hooks that do it.

Hooks are registered once and only look while :attr:`Watches.active`: a compiled network takes the flag as a guard, and
they leave no break in its graph. They keep nothing but tensors that the callback collects after each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from stormproof.layer_names import plain_name
from stormproof.pieces import Pieces, wins
from stormproof.units.axis import convolution_dimensions, unit_axis, units_of
from stormproof.units.extremes import extremes
from stormproof.units.functional import FunctionalActivations, Origin

SPARSITY_INPUTS = 16
"""Inputs of a batch from which sparsity is estimated: to count all zeros takes longer than both extremes."""

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class Seen:
    """What a batch left at one place: the extremes of each unit, the share of zeros, the mean sizes if asked for."""

    low: torch.Tensor
    high: torch.Tensor
    zeros: torch.Tensor
    sizes: torch.Tensor | None = None


@dataclass
class Watch:
    """One place: the output of a module, or the input of a layer that consumes a functional activation.

    Attributes:
        name: of that module.
        module: it.
        function: the activation's name, as far as known.
        seen: of the batch that passes, by the layer before it (None if none is known).
        samples: inputs in the batch that passes.
        consumers: the layers that take its output, with the channels that were flattened into positions, if any.
        norms: by the layer before it, the batch norm between the two.
        before: of a functional activation, the layer before it.
        fold: of a functional activation, the channels of a convolution that were flattened with their positions.
        called: whether it has ever been seen.
    """

    name: str
    module: nn.Module
    function: str
    seen: dict[str | None, Seen]
    consumers: dict[str, int | None]
    norms: dict[str | None, str | None]
    samples: int = 0
    before: str | None = None
    fold: int | None = None
    called: bool = False

    @property
    def has_pieces(self) -> bool:
        """Whether it is pieces that are watched, and not units."""
        return isinstance(self.module, Pieces)


class Watches:
    """All watched places of a network.

    Args:
        network: the network, in which nothing is changed but its hooks.

    Attributes:
        active: whether the hooks look at what passes.
        sizing: whether they take the mean absolute output of each unit too.
        outputs: watched modules by name.
        inputs: all layers by name; those are watched whose input was found to be that of a functional activation.
        norms: batch norms by name.
    """

    def __init__(self, network: nn.Module) -> None:
        self.active = False
        self.sizing = False
        self.outputs: dict[str, Watch] = {}
        self.inputs: dict[str, Watch] = {}
        self.norms: dict[str, nn.Module] = {}
        self._layer: str | None = None
        self._norm: str | None = None
        self._units: tuple[int, int] | None = None
        self._tracing: FunctionalActivations | None = None
        self._handles: list[Any] = []
        modules = [(plain_name(name), module) for name, module in network.named_modules() if name]
        self.compiled = any("_orig_mod" in name or _is_compiled(module) for name, module in network.named_modules())
        for name, module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            if _is_watched(module):
                watch = self.outputs[name] = Watch(name, module, type(module).__name__.lower(), {}, {}, {})
                self._handles.append(module.register_forward_hook(self._output_hook(watch)))
            elif _is_layer(module):
                watch = self.inputs[name] = Watch(name, module, "", {}, {}, {})
                self._handles.append(module.register_forward_hook(self._layer_hook(watch)))
            elif isinstance(module, _BATCH_NORMS):
                self.norms[name] = module
                self._handles.append(module.register_forward_hook(self._norm_hook(name)))

    def __iter__(self) -> Iterator[Watch]:
        """All places that are watched."""
        yield from self.outputs.values()
        yield from (watch for watch in self.inputs.values() if watch.function)

    def named(self, name: str) -> Watch:
        """The place called ``name``."""
        return self.outputs.get(name) or self.inputs[name]

    def has(self, name: str) -> bool:
        """Whether there is such a place."""
        return name in self.outputs or name in self.inputs

    def look(self, *, sizing: bool) -> None:
        """Looks at the batch that begins."""
        self.active, self.sizing = True, sizing
        self._layer, self._units, self._norm = None, None, None

    def unseen(self) -> list[str]:
        """Modules whose kind is known to be called in a forward pass, and that have not been."""
        return [name for name, watch in self.outputs.items() if _is_known(watch.module) and not watch.called]

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    def tracing(self) -> AbstractContextManager[None]:
        """While a batch passes in this context, functional activations are found, and who consumes what."""
        stack = ExitStack()
        if self.compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._tracing = stack.enter_context(FunctionalActivations(self._origin))
        stack.callback(setattr, self, "_tracing", None)
        return stack  # type: ignore[return-value]

    def collect(self) -> Iterator[tuple[Watch, str | None, Seen]]:
        """What the batch that has passed left, place by place; forgets it."""
        for watch in self:
            seen, watch.seen = watch.seen, {}
            watch.called |= bool(seen)
            yield from ((watch, before, each) for before, each in seen.items())

    def forget(self) -> None:
        """Drops what the batch that has passed left."""
        for watch in self:
            watch.seen = {}

    def _origin(self, function: str, shape: torch.Size) -> Origin | None:
        if self._layer is None:
            return None
        axis = unit_axis(shape, self._units)
        return Origin(function, self._layer, (axis, shape[axis]))

    def _output_hook(self, watch: Watch) -> Callable[..., None]:
        def look(module: nn.Module, arguments: Any, output: Any) -> None:
            if not self.active:
                return
            tensor = _tensor_of(output)
            if tensor is None or tensor.ndim < 2 or _passes_on(module, arguments, output):
                return
            if isinstance(module, Pieces):
                won = wins(tensor, module.dim)
                self._see(watch, self._layer, won, -1)
                return
            axis = -1 if isinstance(module, _RECURRENT) else unit_axis(tensor.shape, self._units)
            self._see(watch, self._layer, tensor, axis)
            if self._tracing is not None and isinstance(output, torch.Tensor):
                origin = Origin(watch.function, self._layer or "", (axis, tensor.shape[axis]), watch.name)
                watch.function = self._tracing.note(output, origin).function

        return look

    def _layer_hook(self, watch: Watch) -> Callable[..., None]:
        def look(module: nn.Module, arguments: Any, _: Any) -> None:
            if not self.active:
                return
            if self._tracing is not None and arguments:
                self._find(watch, self._tracing.origin(arguments[0]))
            if watch.function and arguments:
                inputs = arguments[0]
                axis = -1 - (convolution_dimensions(module) or 0)
                if watch.fold is not None:
                    inputs, axis = inputs.unflatten(-1, (watch.fold, -1)), -2
                self._see(watch, watch.before, inputs, axis)
            self._layer, self._units, self._norm = watch.name, units_of(module), None

        return look

    def _norm_hook(self, name: str) -> Callable[..., None]:
        def look(*_: Any) -> None:
            if self.active:
                self._norm = name

        return look

    def _find(self, consumer: Watch, origin: Origin | None) -> None:
        """Notes what the input of a layer was, in the batch that is traced."""
        if origin is None:
            return
        dimension, units = origin.units
        features = consumer.module.in_features if isinstance(consumer.module, nn.Linear) else units
        flattened = units if dimension != -1 and features != units and features % units == 0 else None
        if origin.watched is not None:
            self.outputs[origin.watched].consumers[consumer.name] = flattened
        else:
            consumer.function, consumer.before, consumer.fold = origin.function, origin.layer, flattened
            consumer.consumers[consumer.name] = flattened

    def _see(self, watch: Watch, before: str | None, tensor: torch.Tensor, axis: int) -> None:
        tensor = tensor.detach()
        low, high = extremes(tensor, axis)
        if watch.has_pieces:
            low = torch.zeros_like(low)  # a piece that always wins is not dead
        seen = Seen(low, high, 1 - tensor[:SPARSITY_INPUTS].sign().abs().mean(dtype=torch.float32))
        if self.sizing:
            seen.sizes = tensor.abs().movedim(axis, -1).flatten(0, -2).mean(0)
            watch.norms[before] = self._norm
        known = watch.seen.get(before)
        if known is not None:
            seen.low, seen.high = torch.minimum(low, known.low), torch.maximum(high, known.high)
        watch.seen[before] = seen
        watch.samples = tensor.shape[0]


def _is_watched(module: nn.Module) -> bool:
    """Activations, recurrent networks, pieces and who has them, and modules of one's own without parameters."""
    if _is_known(module) or any(isinstance(child, Pieces) for child in module.children()):
        return True
    ours = not type(module).__module__.startswith(("torch.", "torchmetrics."))
    return ours and not any(True for _ in module.children()) and not any(True for _ in module.parameters())


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, (*_RECURRENT, Pieces)):
        return True
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)


def _is_layer(module: nn.Module) -> bool:
    """Whether units are made by it: it has parameters, of which each output is a combination."""
    if units_of(module) is not None:
        return True
    ours = not type(module).__module__.startswith("torch.")
    return ours and not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False))


def _passes_on(module: nn.Module, arguments: Any, output: Any) -> bool:
    """Whether a module of one's own makes something else than an activation: of another shape, or nothing at all."""
    if _is_known(module) or any(True for _ in module.children()):
        return False
    return not arguments or output is arguments[0] or getattr(arguments[0], "shape", None) != output.shape


def _tensor_of(output: Any) -> torch.Tensor | None:
    while isinstance(output, tuple) and not isinstance(output, PackedSequence):  # a recurrent network's: output, state
        output = output[0]
    tensor = output.data if isinstance(output, PackedSequence) else output
    return tensor if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else None


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None

"""The places of a network at which units are watched, and the hooks that do it.

Hooks are registered once and only look while :attr:`Watches.active`: a compiled network takes the flag as a guard, and
they leave no break in its graph. They keep nothing but tensors that the callback collects after each batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from stormproof.lightning.layer_names import plain_name
from stormproof.units.functional_trace import Flow, Flows, Place, Positions
from stormproof.units.module_kinds import (
    BATCH_NORMS,
    RECURRENT,
    flattened,
    is_activation,
    is_compiled,
    is_layer,
    is_watched,
    passes_on,
    samples_of,
    tensor_of,
)
from stormproof.units.pieces import Pieces, wins
from stormproof.units.running_min_max import extremes
from stormproof.units.unit_axis import shape_of, unit_axis, unit_dimension, units_of
from stormproof.units.watch_point import Feed, Seen, Watch

SPARSITY_INPUTS = 16
"""Inputs of a batch from which sparsity is estimated: to count all zeros takes longer than both extremes."""


class Hook:
    """A hook that a copy of the network, and one that is written to a file, leaves behind."""

    def __init__(self, look: Callable[..., None]) -> None:
        self._look = look

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Looks at what a module puts out."""
        self._look(module, arguments, output)

    def __reduce__(self) -> tuple[Any, ...]:
        """Becomes a function of the standard library that takes anything and does nothing."""
        return getattr, (nullcontext(), "__exit__")


class Watches:
    """All watched places of a network.

    Args:
        network: the network, in which nothing is changed but its hooks.

    Attributes:
        active: whether the hooks look at what passes.
        looks: whether they look at this batch, unless they are told to look away for a while.
        counting_zeros: whether they take the share of zeros too.
        sizing: whether they take the mean absolute output of each unit too.
        outputs: watched modules by name.
        inputs: all layers by name; those are watched whose input was found to be that of a functional activation.
        norms: batch norms by name.
        chains: by place, the layers that take its units; None if not all that makes and takes them is known.
        lost: activations that were traced, and not to a layer that takes them.
        looked: whether they have looked at any batch.
    """

    def __init__(self, network: nn.Module) -> None:
        self.active = self.looks = False
        self.counting_zeros = False
        self.sizing = False
        self.outputs: dict[str, Watch] = {}
        self.inputs: dict[str, Watch] = {}
        self.norms: dict[str, nn.Module] = {}
        self.chains: dict[Place, Mapping[str, Positions] | None] = {}
        self.lost: list[str] = []
        self.looked = False
        self._layer: str | None = None
        self._norm: str | None = None
        self._units: tuple[int, int] | None = None
        self._stages: set[str] = set()  # that have been traced
        self._trace = ExitStack()
        self._tracing: Flows | None = None
        self._handles: list[Any] = []
        modules = [(plain_name(name), module) for name, module in network.named_modules() if name]
        self.compiled = any(is_compiled(module) for module in network.modules())
        for name, module in modules:
            if isinstance(module, torch.jit.ScriptModule) or ".parametrizations." in name:
                continue
            if is_watched(module):
                watch = self.outputs[name] = Watch(name, module, type(module).__name__.lower())
                self._handles.append(module.register_forward_hook(Hook(self._output_hook(watch))))
            elif is_layer(module):
                watch = self.inputs[name] = Watch(name, module)
                self._handles.append(module.register_forward_hook(Hook(self._layer_hook(watch))))
            elif isinstance(module, BATCH_NORMS):
                self.norms[name] = module
                self._handles.append(module.register_forward_hook(Hook(self._norm_hook(name))))

    def __iter__(self) -> Iterator[Watch]:
        """All places that are watched."""
        yield from self.outputs.values()
        yield from (watch for watch in self.inputs.values() if watch.feeds)

    def named(self, name: str) -> Watch:
        """The place called ``name``."""
        return self.outputs.get(name) or self.inputs[name]

    def has(self, name: str) -> bool:
        """Whether there is such a place."""
        return name in self.outputs or name in self.inputs

    def begin(
        self, stage: str, *, counts: bool, counting_zeros: bool = False, sizing: bool = False, traceable: bool = True
    ) -> None:
        """Looks at the batch that begins, if it counts or is the first of its stage, which is traced.

        Args:
            stage: what the network is called for.
            counts: whether what passes is wanted.
            counting_zeros: whether the share of zeros is.
            sizing: whether the mean absolute outputs are, even if nothing else.
            traceable: whether it may be run eagerly, under a mode of torch's functions.
        """
        traces = traceable and stage not in self._stages
        self.looks = self.active = counts or sizing or traces
        if traces:
            self._stages.add(stage)
            self._trace.enter_context(self._tracing_batch())
        if self.looks:
            self.looked = True
            self.counting_zeros, self.sizing = counting_zeros, sizing
            self._layer, self._units, self._norm = None, None, None
            for watch in (*self.outputs.values(), *self.inputs.values()):
                watch.seen, watch.turn = {}, 0

    def end(self) -> None:
        """The batch has passed."""
        self._trace.close()
        self.active = self.looks = False

    def look_anew(self) -> None:
        """Forgets what has been seen: in the batches that are traced a compiled network is not, and calls its hooks."""
        self.looked = False
        for watch in self:
            watch.called = False

    def unseen(self) -> list[str]:
        """Places that were looked at and not seen, of those that every forward pass should call."""
        known = [watch for watch in self if watch.feeds or is_activation(watch.module)]
        return [watch.name for watch in known if not watch.called] if self.looked else []

    def unclear(self) -> list[str]:
        """Places of which it cannot be told which dimension counts the units, and functions that nobody takes."""
        return [*(watch.name for watch in self.outputs.values() if watch.unclear), *self.lost]

    def remove(self) -> None:
        """Takes the hooks away, in the middle of a batch too."""
        self.end()
        for handle in self._handles:
            handle.remove()

    def collect(self) -> Iterator[tuple[Watch, str | None, Seen]]:
        """What the batch that has passed left, place by place; forgets it."""
        for watch in self:
            seen, watch.seen = watch.seen, {}
            watch.called |= bool(seen)  # also a layer that takes a functional activation
            yield from ((watch, before, each) for before, each in seen.items())

    def forget(self) -> None:
        """Drops what the batch that has passed left."""
        for _ in self.collect():
            pass

    @contextmanager
    def _tracing_batch(self) -> Iterator[None]:
        """While a batch passes in this context, functional activations are found, and who consumes what."""
        compiled = "torch._dynamo" in sys.modules  # else nothing can be
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext(), Flows(self._before) as flows:
            self._tracing = flows
            yield
        self._tracing = None
        self.lost = list(dict.fromkeys([*self.lost, *flows.lost()]))
        for place, consumers in flows.chains().items():
            before = self.chains.get(place, consumers)
            self.chains[place] = None if before is None or consumers is None else {**before, **consumers}

    def _before(self, function: str, shape: torch.Size) -> tuple[str, int] | None:
        axis = unit_axis(shape, self._units, gated=function == "glu")
        return None if self._layer is None or axis is None else (self._layer, axis)

    def _place(self, watch: Watch, output: Any, tensor: torch.Tensor) -> tuple[str | None, int | None]:
        """The layer whose output a watched module takes, and the dimension that counts the units."""
        flow = self._tracing.of(output) if self._tracing is not None else None
        if flow is not None and flow.units is None and flow.call.watched is None and flow.call.source is not None:
            watch.origins[self._layer] = flow.call.layer, flow.dimension
        if self._layer in watch.origins:
            return watch.origins[self._layer]
        return self._layer, self._axis(watch.module, shape_of(tensor))

    def _axis(self, module: nn.Module, shape: torch.Size) -> int | None:
        """The dimension of a watched module's output that counts the units."""
        if isinstance(module, RECURRENT):
            return -1
        pieces = next((child for child in module.children() if isinstance(child, Pieces)), None)
        if pieces is not None:  # the one before the pieces, once these are gone
            return pieces.dim - 1 - len(shape) if pieces.dim >= 0 else pieces.dim
        return unit_axis(shape, self._units, gated=isinstance(module, nn.GLU))

    def _output_hook(self, watch: Watch) -> Callable[..., None]:
        def look(module: nn.Module, arguments: Any, output: Any) -> None:
            if not self.active or module is not watch.module:  # a copy of the network has copies of its hooks
                return
            watch.called = True
            tensor = tensor_of(output)
            if tensor is None or tensor.ndim < 2 or passes_on(module, arguments, output):
                return
            if self._layer is None and not is_activation(module):  # it prepares the data
                return
            if isinstance(module, Pieces):
                self._see(watch, self._layer, wins(flattened(tensor.detach()), module.dim), -1, tensor.size(0))
                return
            if isinstance(module, RECURRENT):  # it makes units, too
                self._layer, self._units, self._norm = watch.name, (-1, tensor.shape[-1]), None
            before, axis = self._place(watch, output, tensor)
            if axis is None:
                watch.unclear = True
                return
            self._see(watch, before, tensor, axis, samples_of(module, output, tensor))
            if self._tracing is not None and tensor is output:
                call = self._tracing.activation(watch.name, watch.function, before, tensor, axis)
                if not is_activation(module) and call.function is not None:
                    watch.function = call.function

        return look

    def _layer_hook(self, watch: Watch) -> Callable[..., None]:
        def look(module: nn.Module, arguments: Any, output: Any) -> None:
            if not self.active or module is not watch.module:
                return
            units = units_of(module)
            if self._tracing is not None and arguments:
                axis = None if units is None or not isinstance(output, torch.Tensor) else units[0]
                self._find(watch, arguments[0], self._tracing.layer(watch.name, arguments[0], output, axis))
            feed = watch.feed
            if feed is not None and arguments and arguments[0].is_floating_point():
                inputs = arguments[0]
                self._see(watch, feed.before, inputs, feed.dimension, inputs.size(0), feed)
            if watch.feeds or self._tracing is not None:
                watch.turn += 1
            self._layer, self._units, self._norm = watch.name, units, None

        return look

    def _norm_hook(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, *_: Any) -> None:
            if self.active and module is self.norms[name]:
                self._norm = name

        return look

    def _find(self, consumer: Watch, inputs: torch.Tensor, taken: Flow | None) -> None:
        """Notes what the input of a layer was, in the batch that is traced."""
        function = None if taken is None else taken.call.function
        if taken is None or function is None:
            consumer.mixed = True
            return
        call, positions, first = taken.call, taken.positions(), consumer.feeds.get(0)
        if call.watched is None and next(iter(call.consumers), consumer.name) == consumer.name:
            consumer.mixed |= first is not None and first.before != call.layer
            consumer.function = function
            here = None if positions is None else positions.to(inputs.device)
            consumer.feeds[consumer.turn] = Feed(call.layer, taken.dimension, here, taken.zero_only)
        if taken.dimension == unit_dimension(consumer.module):
            call.uses -= 1
            call.consumers[consumer.name] = positions
        elif call.watched is None:
            call.consumers.setdefault(consumer.name, positions)

    def _see(
        self,
        watch: Watch,
        before: str | None,
        tensor: torch.Tensor,
        axis: int,
        samples: int,
        feed: Feed | None = None,
    ) -> None:
        if not tensor.numel():  # nothing has come by
            return
        if self._tracing is not None:
            self._tracing.aside = True
        tensor = flattened(tensor.detach())
        low, high = extremes(tensor, axis)
        if watch.has_pieces or (feed is not None and feed.zero_only):
            low = torch.zeros_like(low)  # a piece that always wins is not dead
        positions = None if feed is None else feed.positions
        if positions is not None:
            low, high = low[positions].amin(1), high[positions].amax(1)
        seen = Seen(low, high, samples)
        if self.counting_zeros:
            seen.nonzero = tensor[:SPARSITY_INPUTS].sign().abs().mean(dtype=torch.float32)
        if self.sizing:
            sizes = tensor.abs().movedim(axis, -1).flatten(0, -2).mean(0)
            seen.sizes = sizes if positions is None else sizes[positions].mean(1)
            watch.norms[before] = self._norm
        known = watch.seen.get(before)
        if known is not None:
            seen.low, seen.high = torch.minimum(low, known.low), torch.maximum(high, known.high)
            if seen.sizes is not None and known.sizes is not None:
                seen.sizes = seen.sizes + known.sizes
        watch.seen[before] = seen
        if self._tracing is not None:
            self._tracing.aside = False

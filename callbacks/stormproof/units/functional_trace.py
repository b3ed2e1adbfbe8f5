"""Where activations are applied as functions, and where outputs go: what no hook of a module sees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from stormproof.units.callers_line import call_at_callers_line
from stormproof.units.unit_axis import shape_of

_ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "softsign", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink", "log_sigmoid",
    "sigmoid", "special_expit", "tanh", "threshold", "glu", "softmax", "softmin", "log_softmax",
    "clamp", "clamp_min", "clip",
})  # fmt: skip
_RESHAPE = frozenset({"flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze"})
_PERMUTE = frozenset({"permute", "transpose", "movedim"})
_REDUCE = frozenset({"mean", "amax"})
_HIDING = frozenset({
    "pad", "amax", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
})  # fmt: skip
"""Behind these a unit that never leaves a value may leave it, or the reverse, unless that value is a ReLU's 0."""
_PASS_ON = _RESHAPE | _PERMUTE | _REDUCE | _HIDING | frozenset({
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "batch_norm",
    "contiguous", "clone", "to", "type", "float", "half", "bfloat16", "double", "mul", "div", "square",
    "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
})  # fmt: skip
"""Behind these a unit is constant where it was, and no new unit is made; a product is a gate."""

Place = tuple[str, str | None]
"""A watched module or consuming layer, and the layer before it."""

Positions = torch.Tensor | None
"""(units, positions): where the units of an activation lie in the input of a layer; None if one after the other."""


@dataclass(eq=False)
class Call:
    """One call of a layer or of an activation.

    Attributes:
        layer: the layer; of an activation, the one whose output it takes, or was called before it if that is unknown.
        function: the activation's name, e.g. ``relu``; None of a layer.
        source: of an activation, what its input is the output of, if that is known.
        watched: of an activation, the module whose output is watched already; None for a plain function.
        turn: how many layers had been called before it.
        uses: how many functions took its output, those of ``consumers`` and what only passes it on left out.
        consumers: the layers that took it.
    """

    layer: str | None
    function: str | None = None
    source: Call | None = None
    watched: str | None = None
    turn: int = 0
    uses: int = 0
    consumers: dict[str, Positions] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """What a tensor holds.

    Attributes:
        call: whose output.
        dimension: the one along which the units lie, from the end.
        count: of the units.
        units: (positions,), which unit is where along it; None if one after the other.
        zero_only: whether it tells no more of a unit than whether that is always 0.
    """

    call: Call
    dimension: int
    count: int
    units: torch.Tensor | None = None
    zero_only: bool = False

    def positions(self) -> Positions:
        """Where each unit lies."""
        return None if self.units is None else self.units.argsort(stable=True).view(self.count, -1)


class Flows(TorchFunctionMode):
    """Follows what layers and activations put out, while one batch passes the network, to whatever takes it.

    Args:
        before: called with an activation's name and the shape of its output; gives the layer before it and the
            dimension that counts its units, None where there is none.

    Attributes:
        aside: whether it is not the network that calls functions now.
    """

    def __init__(self, before: Callable[[str, torch.Size], tuple[str, int] | None]) -> None:
        super().__init__()
        self.aside = False
        self._before = before
        self._flows = WeakTensorKeyDictionary()
        self._activations: list[Call] = []
        self._layers: defaultdict[str, list[Call]] = defaultdict(list)
        self._fed: defaultdict[str, list[Call | None]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls ``func`` and notes what its output holds."""
        kwargs = kwargs or {}
        if self.aside:
            return call_at_callers_line(func, args, kwargs)
        tensors = _tensors((*args, *kwargs.values()))
        taken = [(flow, shape_of(tensor)) for tensor in tensors if (flow := self.of(tensor)) is not None]
        output = call_at_callers_line(func, args, kwargs)
        if not any(True for _ in _tensors((output,))):
            return output
        name = getattr(func, "__name__", "").strip("_")
        flow = None
        if name in _PASS_ON and taken and isinstance(output, torch.Tensor) and output.numel():
            flow = _passed_on(name, func, taken, args, kwargs, output)
        if flow is None:
            for each, _ in taken:
                each.call.uses += 1
            real = isinstance(output, torch.Tensor) and output.is_floating_point()
            if name in _ACTIVATIONS and real and output.ndim >= 2:
                flow = self._activation(name, output, taken[0][0] if taken else None)
        self._note(output, flow)
        return output

    def of(self, tensor: Any) -> Flow | None:
        """What ``tensor`` holds; None if it is not known."""
        return self._flows.get(tensor) if isinstance(tensor, torch.Tensor) else None

    def layer(self, name: str, inputs: Any, output: Any, axis: int | None) -> Flow | None:
        """Notes that a layer made ``output`` from ``inputs``, along the units of ``axis``; returns what it took."""
        taken = self.of(inputs)
        self._fed[name].append(taken.call if taken else None)
        call = Call(name)
        self._layers[name].append(call)
        self._note(output, None if axis is None else Flow(call, axis, shape_of(output)[axis]))
        return taken

    def activation(self, name: str, function: str, layer: str | None, output: torch.Tensor, axis: int) -> Call:
        """Notes that ``output`` is that of the watched module ``name``; what function it applies may be known."""
        known = self.of(output)
        call = known.call if known and known.call.function and known.call.watched is None else None
        if call is None:
            if known is not None:
                known.call.uses += 1
            call = Call(layer, function)
            self._activations.append(call)
        call.watched = name
        self._note(output, Flow(call, axis, shape_of(output)[axis]))
        return call

    def lost(self) -> list[str]:
        """Activations of a layer's output, applied as functions, of which no other layer was found that takes them.

        What comes behind the last layer is no unit that another one takes: it is not among them.
        """
        calls = [call for call in self._activations if call.watched is None and call.source is not None]
        return [
            f"{call.function} behind {call.layer}" for call in calls if not call.consumers and call.turn < self._turn
        ]

    def chains(self) -> dict[Place, Mapping[str, Positions] | None]:
        """By place, the layers that take its units; None if not all that makes and takes them is known."""
        places: defaultdict[Place, list[Call]] = defaultdict(list)
        for call in self._activations:
            name = call.watched or next(iter(call.consumers), None)  # of several layers that take it, the first
            if name is not None:
                places[name, call.layer].append(call)
        return {place: self._consumers(place[1], calls) for place, calls in places.items()}

    def _consumers(self, layer: str | None, calls: Sequence[Call]) -> Mapping[str, Positions] | None:
        consumers = {name: positions for call in calls for name, positions in call.consumers.items()}
        made = self._layers[layer] if layer is not None else []
        sources = [call.source for call in calls]
        known = bool(consumers) and len(made) == len(calls)
        known = known and all(source is not None and source in made and source.uses == 1 for source in sources)
        known = known and not any(call.uses for call in calls)
        known = known and all(call in calls for name in consumers for call in self._fed[name])
        return consumers if known else None

    def _activation(self, name: str, output: torch.Tensor, source: Flow | None) -> Flow | None:
        shape = shape_of(output)
        if source is not None and source.units is None and source.call.function is None:
            layer, axis = source.call.layer, source.dimension
        else:
            found = self._before(name, shape)
            if found is None:
                return None
            layer, axis = found
        call = Call(layer, name, source.call if source else None, turn=self._turn)
        self._activations.append(call)
        return Flow(call, axis, shape[axis])

    @property
    def _turn(self) -> int:
        return sum(map(len, self._layers.values()))

    def _note(self, output: Any, flow: Flow | None) -> None:
        if flow is not None:
            self._flows[output] = flow
        elif isinstance(output, torch.Tensor):
            self._flows.pop(output, None)  # changed in place, it is something else


def _passed_on(
    name: str, func: Any, taken: Sequence[tuple[Flow, torch.Size]], args: Any, kwargs: Any, output: torch.Tensor
) -> Flow | None:
    """What the output of a function holds that makes no new units."""
    flow, shape = next((each for each in taken if each[0].call.function), taken[0])
    moved = _moved(name, func, flow, shape, args, kwargs, output)
    if moved is None:
        return None
    if name in _HIDING and flow.call.function and flow.call.watched is None:
        if flow.call.function != "relu":
            return None
        moved = replace(moved, zero_only=True)
    for each, _ in taken:
        each.call.uses += each is not flow
    if name == "batch_norm" and flow.call.function:
        flow.call.uses += 1  # it moves zero
    return moved


def _moved(
    name: str, func: Any, flow: Flow, shape: torch.Size, args: Any, kwargs: Any, output: torch.Tensor
) -> Flow | None:
    """Where the units lie in ``output``; None if along none of its dimensions."""
    if name not in _RESHAPE | _PERMUTE | _REDUCE:
        kept = output.ndim == len(shape) and shape_of(output)[flow.dimension] == shape[flow.dimension]
        return flow if kept else None
    if output.is_nested:
        return None
    every = torch.arange(flow.count)
    marks = every if flow.units is None else flow.units
    marks = marks.view(-1, *(1,) * (-1 - flow.dimension)).expand(shape)
    if name in _RESHAPE:
        marks = marks.reshape(output.shape)
    elif name in _PERMUTE:
        marks = func(marks, *args[1:], **kwargs)
    else:
        marks = marks.amax(*args[1:], **{key: kwargs[key] for key in ("dim", "keepdim") if key in kwargs})
    for dimension in range(-1, -marks.ndim, -1):  # the first counts the samples
        rows = marks.movedim(dimension, -1)
        row = rows[(0,) * (rows.ndim - 1)]
        alike = not any(rows.stride()[:-1]) or bool((rows == row).all())
        if alike and len(set(row.bincount(minlength=flow.count).tolist())) == 1:
            return replace(flow, dimension=dimension, units=None if torch.equal(row, every) else row.clone())
    return None


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (each for each in value if isinstance(each, torch.Tensor))

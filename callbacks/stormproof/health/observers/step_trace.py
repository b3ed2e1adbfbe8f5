"""One training step, looked at closely: what each layer took and gave, and what the loss was called with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stormproof.health.observers.provenance import Origin, Origins, tensors_in
from stormproof.health.observers.torch_losses import ELEMENTWISE, TAKES

NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
BOUNDED = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0), "hardtanh": (-1.0, 1.0)}
"""Activations that are flat towards two values."""
NEAR = 0.01
"""The share of an activation's range within which of its ends it counts as saturated."""
MEETS = frozenset({"sub", "rsub", "__sub__", "__rsub__", "mul", "dist", *ELEMENTWISE})
"""Functions by which a prediction meets its target, and that stretch shapes that do not fit."""
PICKS = frozenset({"gather", "__getitem__", "take_along_dim"})
"""Functions by which a class's number picks its logarithm of a probability."""
MEETINGS = 4
"""Pairs of a prediction and its target that are kept, the last ones."""
SAMPLES, ENTRIES = 64, 512
"""Of a batch, so many samples, and so many entries of each, are looked at."""


@dataclass
class LayerCall:
    """A layer's call.

    Attributes:
        layer: its name.
        spread: how much the output differs between samples, relative to its size; None if it cannot be told.
    """

    layer: str
    spread: float | None


@dataclass
class ActivationCall:
    """A call of a bounded activation: the layer before it, and the share of its outputs near its ends."""

    layer: str
    function: str
    saturated: float


@dataclass
class LossCall:
    """A call of a standard loss.

    Attributes:
        name: of its function.
        prediction: what it was given first.
        target: what second.
        arguments: what else.
        made_by: the function that gave the prediction its values.
        layer: the last layer on the way to it.
        value: what it gave.
        target_of: Indices of the batch tensors that the target was computed from. Empty if it also depends on a layer.
    """

    name: str
    prediction: torch.Tensor
    target: torch.Tensor
    arguments: Mapping[str, Any]
    made_by: str
    layer: str
    value: torch.Tensor
    target_of: frozenset[int]

    @property
    def is_given(self) -> bool:
        """Returns whether the target was computed only from the batch."""
        return bool(self.target_of)


@dataclass
class Meeting:
    """A prediction and a target of the batch that a function took both of, where the loss may be written out."""

    prediction: torch.Tensor
    target: torch.Tensor
    made_by: str
    layer: str
    target_of: frozenset[int] = frozenset()


@dataclass
class Stretched:
    """A prediction and a target whose shapes did not fit, and were stretched."""

    function: str
    prediction: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class InputFacts:
    """The numbers that the first layer takes.

    Attributes:
        mean: of all.
        rms: their root mean square.
        largest_scale: the largest standard deviation of an entry over the samples.
        smallest_scale: the smallest that is not zero.
        normalized: whether a norm comes first, or next.
    """

    mean: float
    rms: float
    largest_scale: float
    smallest_scale: float
    normalized: bool


@dataclass
class CloserLook:
    """What a step showed. :attr:`origins` is the context to run it in.

    Args:
        layer_names: the name of each parameter's layer, by the parameter's ``id``.
        batch: the tensors of the batch.
        samples: the size of the batch.
    """

    layer_names: Mapping[int, str]
    batch: list[torch.Tensor]
    samples: int
    losses: list[LossCall] = field(default_factory=list)
    stretched: list[Stretched] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    inputs: torch.Tensor | None = None  # of the first layer that takes the batch's numbers
    normalized: bool = False  # whether a norm comes first, or next
    called: set[str] = field(default_factory=set)
    cut_inputs: set[str] = field(default_factory=set)  # layers whose output, cut off its graph, a layer takes
    hidden: list[torch.Tensor] = field(default_factory=list)  # parameters of no submodule
    from_nowhere: str | None = None  # a layer that takes numbers of which nobody knows where they come from
    before_nowhere: set[str] = field(default_factory=set)  # the layers called before
    _layers: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    _activations: list[tuple[str, str, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origins = Origins(self.layer_names, self.batch, self._look)

    def forget(self) -> None:
        """Lets go of the step's tensors: this and :attr:`origins` hold each other, so that they would stay a while."""
        self.batch, self.losses, self.meetings, self.hidden, self.inputs = [], [], [], [], None

    @property
    def layers(self) -> list[LayerCall]:
        """The calls of layers, in their order; waits for the device."""
        if not self._layers:
            return []
        spreads = torch.stack([spread for _, spread in self._layers]).tolist()
        return [
            LayerCall(layer, None if math.isnan(spread) else spread)
            for (layer, _), spread in zip(self._layers, spreads, strict=True)
        ]

    @property
    def activations(self) -> list[ActivationCall]:
        """The calls of bounded activations, in their order; waits for the device."""
        if not self._activations:
            return []
        shares = torch.stack([each[2] for each in self._activations]).tolist()
        return [
            ActivationCall(layer, function, share)
            for (layer, function, _), share in zip(self._activations, shares, strict=True)
        ]

    def input_facts(self) -> InputFacts | None:
        """The numbers that the first layer takes; None if there are none, or of a single sample."""
        if self.inputs is None or self.inputs.size(0) < 2:
            return None
        scales = self.inputs.std(0)
        moving = scales[scales > 0]
        return InputFacts(
            mean=float(self.inputs.mean()),
            rms=float(self.inputs.square().mean().sqrt()),
            largest_scale=float(scales.max()),
            smallest_scale=float(moving.min()) if len(moving) else 0.0,
            normalized=self.normalized,
        )

    def _look(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: torch.Tensor, origin: Origin
    ) -> None:
        if not made.is_floating_point():
            return
        if name in TAKES:
            self._take_loss(name, args, kwargs, made)
        if name in MEETS or name in PICKS:
            self._meet(name, args)
        layer = None
        for each in tensors_in((args, kwargs)):
            if id(each) in self.layer_names:
                layer = layer or self.layer_names[id(each)]
            elif (
                isinstance(each, torch.nn.Parameter)
                and each.requires_grad
                and made.requires_grad
                and all(each is not known for known in self.hidden)
            ):
                self.hidden.append(each)
        if layer is not None:
            self._take_layer(layer, name, args, made)
        elif name in NORMS and len(self.called) <= 1:
            self.normalized = True
        if name in BOUNDED and origin.layer is not None:
            low, high = BOUNDED[name]
            near = NEAR * (high - low)
            seen = _part(made)
            share = ((seen < low + near) | (seen > high - near)).float().mean()
            self._activations.append((origin.layer, name, share))

    def _take_layer(self, layer: str, name: str, args: tuple[Any, ...], made: torch.Tensor) -> None:
        self.called.add(layer)
        taken = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if taken is None or not taken.is_floating_point() or id(taken) in self.layer_names:
            return
        before = self.origins.of(taken)
        if made.requires_grad:
            self.cut_inputs |= before.layers - before.live
        if not before.layers and not before.data and self.from_nowhere is None:
            self.from_nowhere, self.before_nowhere = layer, self.called - {layer}
        if name in NORMS and len(self.called) <= 2:
            self.normalized = True
        if before.data and not before.layers and self.inputs is None:
            self.inputs = _part(taken)
        out = _part(made)
        spread = out.new_tensor(math.nan)
        if self.samples > 1 and made.ndim > 1 and made.size(0) == self.samples:
            spread = out.std(0).mean() / out.square().mean().sqrt().clamp_min(1e-30)
        self._layers.append((layer, spread))

    def _take_loss(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: torch.Tensor) -> None:
        both = [*args[:2], *(kwargs[key] for key in ("input", "target") if key in kwargs)]
        if len(both) != 2 or not all(isinstance(each, torch.Tensor) for each in both) or len(args) > 2:
            return
        prediction, target = both
        if not prediction.numel() or not target.numel():
            return
        of = self.origins.of(prediction)
        if not of.layers:
            if not self.origins.of(target).layers:
                return
            prediction, target = target, prediction  # as people write it now and then
            of = self.origins.of(prediction)
        rest = {key: value for key, value in kwargs.items() if key not in {"input", "target"}}
        wanted = self.origins.of(target)
        self.losses.append(
            LossCall(
                name, prediction.detach(), target.detach(), rest, of.made_by, of.layer or "", made.detach(),
                target_of=frozenset() if wanted.layers else wanted.data,
            )
        )  # fmt: skip

    def _meet(self, name: str, args: tuple[Any, ...]) -> None:
        if name in PICKS:
            self._pick(args)
            return
        if len(args) < 2 or not all(isinstance(each, torch.Tensor) for each in args[:2]):
            return
        first, second = (self.origins.of(each) for each in args[:2])
        if bool(first.layers) == bool(second.layers) or not (first.data and second.data):
            return
        prediction, target = args[:2] if first.layers else (args[1], args[0])
        if prediction.shape == target.shape:
            self._keep_meeting(prediction, target, self.origins.of(target).data)
        elif prediction.numel() == target.numel() < math.prod(torch.broadcast_shapes(prediction.shape, target.shape)):
            self.stretched.append(Stretched(name, tuple(prediction.shape), tuple(target.shape)))

    def _pick(self, args: tuple[Any, ...]) -> None:
        scores = args[0]
        if not isinstance(scores, torch.Tensor) or scores.ndim < 2 or not self.origins.of(scores).layers:
            return
        for chosen in tensors_in(args[1:]):
            of = self.origins.of(chosen)
            if not chosen.is_floating_point() and chosen.ndim and of.data and not of.layers:
                self._keep_meeting(scores, chosen.squeeze(1) if chosen.ndim == scores.ndim else chosen, of.data)

    def _keep_meeting(self, prediction: torch.Tensor, target: torch.Tensor, target_of: frozenset[int]) -> None:
        of = self.origins.of(prediction)
        met = Meeting(prediction.detach(), target.detach(), of.made_by, of.layer or "", target_of)
        self.meetings = [*self.meetings, met][-MEETINGS:]


def _part(tensor: torch.Tensor) -> torch.Tensor:
    """Some of a batch's samples, and of each sample's entries, (N, entries)."""
    some = tensor.detach()[:SAMPLES] if tensor.ndim else tensor.detach()[None]
    flat = some.flatten(1) if some.ndim > 1 else some[:, None]
    if flat.size(1) > ENTRIES:  # spread over all of them
        flat = flat[:, :: flat.size(1) // ENTRIES]
    return flat.float()

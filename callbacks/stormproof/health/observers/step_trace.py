"""Trace of one training step: calls of layers, activations and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stormproof.health.observations.data import InputStats
from stormproof.health.observations.predictions import ActivationCall, BroadcastMismatch, LayerCall
from stormproof.health.observers.provenance import Origin, ProvenanceTracker, iter_tensors
from stormproof.health.observers.torch_losses import ELEMENTWISE, LOSS_INPUTS

NORMALIZATIONS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
BOUNDED_ACTIVATIONS = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0), "hardtanh": (-1.0, 1.0)}
"""Limits of bounded activations."""
SATURATION_MARGIN = 0.01
"""Distance from a limit, as a share of the range, below which an output is saturated."""
PAIRING_FUNCTIONS = frozenset({"sub", "rsub", "__sub__", "__rsub__", "mul", "dist", *ELEMENTWISE})
"""Functions of a prediction and its target that broadcast their shapes."""
INDEXING_FUNCTIONS = frozenset({"gather", "__getitem__", "take_along_dim"})
"""Functions that select the log-probability of a class by its index."""
MAX_PAIRS = 4
"""Maximum number of pairs of a prediction and its target to keep."""
MAX_SAMPLES, MAX_ENTRIES = 64, 512
"""Maximum number of samples of a batch, and of entries of a sample, to measure."""


@dataclass
class LossCall:
    """Call of a standard loss.

    Attributes:
        name: Name of the function.
        prediction: First argument.
        target: Second argument.
        arguments: Other arguments.
        producer: Function that computed the values of the prediction.
        layer: Last layer before the prediction.
        value: Return value.
        target_indices: Indices of the batch tensors that the target was computed from. Empty if it also depends on a
            layer.
    """

    name: str
    prediction: torch.Tensor
    target: torch.Tensor
    arguments: Mapping[str, Any]
    producer: str
    layer: str
    value: torch.Tensor
    target_indices: frozenset[int]

    @property
    def has_data_targets(self) -> bool:
        """Returns whether the target was computed only from the batch."""
        return bool(self.target_indices)


@dataclass
class PredictionTargetPair:
    """A prediction and a target that a function combines, possibly as part of a custom loss."""

    prediction: torch.Tensor
    target: torch.Tensor
    producer: str
    layer: str
    target_indices: frozenset[int] = frozenset()


@dataclass
class StepTrace:
    """Calls in one training step, which runs within the context manager :attr:`origins`.

    Args:
        layer_names: Layer names by ``id`` of the parameter.
        batch: Tensors of the batch.
        samples: Batch size.
    """

    layer_names: Mapping[int, str]
    batch: list[torch.Tensor]
    samples: int
    losses: list[LossCall] = field(default_factory=list)
    broadcast_mismatches: list[BroadcastMismatch] = field(default_factory=list)
    pairs: list[PredictionTargetPair] = field(default_factory=list)
    first_inputs: torch.Tensor | None = None  # of the first layer with an input from the batch
    is_normalized: bool = False  # whether one of the first two layers is a norm
    called_layers: set[str] = field(default_factory=set)
    detached_input_layers: set[str] = field(default_factory=set)  # layers whose detached output is the input of a layer
    unregistered_parameters: list[torch.Tensor] = field(default_factory=list)  # parameters of no submodule
    untracked_input_layer: str | None = None  # a layer with an input of unknown origin
    layers_before_untracked: set[str] = field(default_factory=set)  # the layers called before
    _layer_spreads: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    _activation_shares: list[tuple[str, str, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origins = ProvenanceTracker(self.layer_names, self.batch, self._on_call)

    def release_tensors(self) -> None:
        """Drops the tensors of the step. A reference cycle with :attr:`origins` would delay this."""
        self.batch, self.losses, self.pairs, self.unregistered_parameters, self.first_inputs = [], [], [], [], None

    @property
    def layer_calls(self) -> list[LayerCall]:
        """Calls of layers in order. Synchronizes with the device."""
        if not self._layer_spreads:
            return []
        spreads = torch.stack([spread for _, spread in self._layer_spreads]).tolist()
        return [
            LayerCall(layer, None if math.isnan(spread) else spread)
            for (layer, _), spread in zip(self._layer_spreads, spreads, strict=True)
        ]

    @property
    def activation_calls(self) -> list[ActivationCall]:
        """Calls of bounded activations in order. Synchronizes with the device."""
        if not self._activation_shares:
            return []
        shares = torch.stack([activation[2] for activation in self._activation_shares]).tolist()
        return [
            ActivationCall(layer, function, share)
            for (layer, function, _), share in zip(self._activation_shares, shares, strict=True)
        ]

    def compute_input_stats(self) -> InputStats | None:
        """Returns statistics of the input of the first layer. None without input, or for a single sample."""
        if self.first_inputs is None or self.first_inputs.size(0) < 2:
            return None
        scales = self.first_inputs.std(0)
        positive_scales = scales[scales > 0]
        return InputStats(
            mean=float(self.first_inputs.mean()),
            rms=float(self.first_inputs.square().mean().sqrt()),
            largest_scale=float(scales.max()),
            smallest_scale=float(positive_scales.min()) if len(positive_scales) else 0.0,
            is_normalized=self.is_normalized,
        )

    def _on_call(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor, origin: Origin
    ) -> None:
        """Records the call of a torch function."""
        if not output.is_floating_point():
            return
        if name in LOSS_INPUTS:
            self._record_loss_call(name, args, kwargs, output)
        if name in PAIRING_FUNCTIONS or name in INDEXING_FUNCTIONS:
            self._record_pair(name, args)
        layer = None
        for tensor in iter_tensors((args, kwargs)):
            if id(tensor) in self.layer_names:
                layer = layer or self.layer_names[id(tensor)]
            elif (
                isinstance(tensor, torch.nn.Parameter)
                and tensor.requires_grad
                and output.requires_grad
                and all(tensor is not parameter for parameter in self.unregistered_parameters)
            ):
                self.unregistered_parameters.append(tensor)
        if layer is not None:
            self._record_layer_call(layer, name, args, output)
        elif name in NORMALIZATIONS and len(self.called_layers) <= 1:
            self.is_normalized = True
        if name in BOUNDED_ACTIVATIONS and origin.layer is not None:
            low, high = BOUNDED_ACTIVATIONS[name]
            margin = SATURATION_MARGIN * (high - low)
            samples = _subsample(output)
            share = ((samples < low + margin) | (samples > high - margin)).float().mean()
            self._activation_shares.append((origin.layer, name, share))

    def _record_layer_call(self, layer: str, name: str, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """Records the input and the output of a layer."""
        self.called_layers.add(layer)
        inputs = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if inputs is None or not inputs.is_floating_point() or id(inputs) in self.layer_names:
            return
        origin = self.origins.origin_of(inputs)
        if output.requires_grad:
            self.detached_input_layers |= origin.layers - origin.differentiable_layers
        if not origin.layers and not origin.batch_indices and self.untracked_input_layer is None:
            self.untracked_input_layer, self.layers_before_untracked = layer, self.called_layers - {layer}
        if name in NORMALIZATIONS and len(self.called_layers) <= 2:
            self.is_normalized = True
        if origin.batch_indices and not origin.layers and self.first_inputs is None:
            self.first_inputs = _subsample(inputs)
        samples = _subsample(output)
        spread = samples.new_tensor(math.nan)
        if self.samples > 1 and output.ndim > 1 and output.size(0) == self.samples:
            spread = samples.std(0).mean() / samples.square().mean().sqrt().clamp_min(1e-30)
        self._layer_spreads.append((layer, spread))

    def _record_loss_call(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
    ) -> None:
        """Records the arguments of a standard loss."""
        tensors = [*args[:2], *(kwargs[key] for key in ("input", "target") if key in kwargs)]
        if len(tensors) != 2 or not all(isinstance(tensor, torch.Tensor) for tensor in tensors) or len(args) > 2:
            return
        prediction, target = tensors
        if not prediction.numel() or not target.numel():
            return
        origin = self.origins.origin_of(prediction)
        if not origin.layers:
            if not self.origins.origin_of(target).layers:
                return
            prediction, target = target, prediction  # some users swap the arguments
            origin = self.origins.origin_of(prediction)
        other_arguments = {key: value for key, value in kwargs.items() if key not in {"input", "target"}}
        target_origin = self.origins.origin_of(target)
        self.losses.append(
            LossCall(
                name, prediction.detach(), target.detach(), other_arguments, origin.producer, origin.layer or "",
                output.detach(),
                target_indices=frozenset() if target_origin.layers else target_origin.batch_indices,
            )
        )  # fmt: skip

    def _record_pair(self, name: str, args: tuple[Any, ...]) -> None:
        """Records a prediction and a target, and whether torch broadcasts them."""
        if name in INDEXING_FUNCTIONS:
            self._record_indexed_pair(args)
            return
        if len(args) < 2 or not all(isinstance(tensor, torch.Tensor) for tensor in args[:2]):
            return
        first_origin, second_origin = (self.origins.origin_of(tensor) for tensor in args[:2])
        if bool(first_origin.layers) == bool(second_origin.layers) or not (
            first_origin.batch_indices and second_origin.batch_indices
        ):
            return
        prediction, target = args[:2] if first_origin.layers else (args[1], args[0])
        if prediction.shape == target.shape:
            self._append_pair(prediction, target, self.origins.origin_of(target).batch_indices)
        elif prediction.numel() == target.numel() < math.prod(torch.broadcast_shapes(prediction.shape, target.shape)):
            self.broadcast_mismatches.append(BroadcastMismatch(name, tuple(prediction.shape), tuple(target.shape)))

    def _record_indexed_pair(self, args: tuple[Any, ...]) -> None:
        """Records scores and the class indices that select from them."""
        scores = args[0]
        if not isinstance(scores, torch.Tensor) or scores.ndim < 2 or not self.origins.origin_of(scores).layers:
            return
        for indices in iter_tensors(args[1:]):
            origin = self.origins.origin_of(indices)
            if not indices.is_floating_point() and indices.ndim and origin.batch_indices and not origin.layers:
                self._append_pair(
                    scores, indices.squeeze(1) if indices.ndim == scores.ndim else indices, origin.batch_indices
                )

    def _append_pair(self, prediction: torch.Tensor, target: torch.Tensor, target_indices: frozenset[int]) -> None:
        """Keeps the last pairs of a prediction and a target."""
        origin = self.origins.origin_of(prediction)
        pair = PredictionTargetPair(
            prediction.detach(), target.detach(), origin.producer, origin.layer or "", target_indices
        )
        self.pairs = [*self.pairs, pair][-MAX_PAIRS:]


def _subsample(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a sample of the batch of shape (N, entries)."""
    samples = tensor.detach()[:MAX_SAMPLES] if tensor.ndim else tensor.detach()[None]
    entries = samples.flatten(1) if samples.ndim > 1 else samples[:, None]
    if entries.size(1) > MAX_ENTRIES:  # evenly spaced
        entries = entries[:, :: entries.size(1) // MAX_ENTRIES]
    return entries.float()

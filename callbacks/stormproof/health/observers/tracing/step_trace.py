"""Trace of one training step: calls of layers, activations and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stormproof.health.observations.data import InputStats
from stormproof.health.observations.predictions import ActivationCall, BroadcastMismatch, LayerCall
from stormproof.health.observers.torch_losses import ELEMENTWISE, LOSS_INPUTS, OTHER_LOSS_INPUTS
from stormproof.health.observers.tracing.provenance import BOUNDED_FUNCTIONS, Origin, ProvenanceTracker, iter_tensors
from stormproof.units.functional_trace import ACTIVATIONS
from stormproof.units.transforms import plain_values

NORMALIZATIONS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
BOUNDED_ACTIVATIONS = {
    **{name: BOUNDED_FUNCTIONS[name] for name in ("sigmoid", "tanh", "hardsigmoid")},
    "hardtanh": (-1.0, 1.0),
}
"""Limits of bounded activations."""
SATURATION_MARGIN = 0.01
"""Distance from a limit, as a share of the range, below which an output is saturated."""
MIN_VARIANCE = 1e-5
"""Variance of a channel below which it is constant, as ``eps`` of batch norm."""
PAIRING_FUNCTIONS = frozenset({"sub", "rsub", "__sub__", "__rsub__", "mul", "dist", *ELEMENTWISE})
"""Functions of a prediction and its target that broadcast their shapes."""
CONCATENATION_FUNCTIONS = frozenset({"cat", "concat", "concatenate", "hstack"})
"""Functions that concatenate tensors."""
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
        origin: Origin of the prediction.
        value: Return value.
        target_origin: Origin of the target.
    """

    name: str
    prediction: torch.Tensor
    target: torch.Tensor
    arguments: Mapping[str, Any]
    origin: Origin
    value: torch.Tensor
    target_origin: Origin

    @property
    def is_comparable(self) -> bool:
        """Returns whether the loss can be compared with a constant prediction."""
        return self.name in LOSS_INPUTS

    @property
    def has_data_targets(self) -> bool:
        """Returns whether the target is data: computed only from the batch, or generated class indices.

        Generated class indices are, for example, the positions of positive pairs in a contrastive loss.
        """
        if self.target_origin.layers:
            return False
        are_classes = self.name == "cross_entropy" and not self.target.is_floating_point()
        return bool(self.target_origin.batch_indices) or are_classes


@dataclass
class PredictionTargetPair:
    """A prediction and a target that a function combines, possibly as part of a custom loss."""

    prediction: torch.Tensor
    target: torch.Tensor
    origin: Origin
    target_origin: Origin


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
    first_inputs: torch.Tensor | None = None  # first numeric batch data that reach a layer
    first_input_rows: int = 0  # before the limit of samples
    is_normalized: bool = False  # whether one of the first two layers is a norm
    called_layers: set[str] = field(default_factory=set)
    detached_input_layers: set[str] = field(default_factory=set)  # layers whose detached output is the input of a layer
    unregistered_parameters: list[torch.Tensor] = field(default_factory=list)  # parameters of no submodule
    untracked_input_layer: str | None = None  # a layer with an input of unknown origin
    layers_before_untracked: set[str] = field(default_factory=set)  # the layers called before
    mode_functions: dict[str, frozenset[str]] = field(default_factory=dict)  # before the activation after a layer
    _normalized_layers: dict[str, str] = field(default_factory=dict)  # the layer before a norm, by norm
    _numeric_layers: set[str] = field(default_factory=set)  # layers with floating-point inputs, unlike embeddings
    _layer_spreads: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    _norm_distances: list[tuple[str, torch.Tensor]] = field(default_factory=list)  # of shape (2, channels)
    _activation_shares: list[tuple[str, str, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origins = ProvenanceTracker(self.layer_names, self.batch, self._on_call)

    def release_tensors(self) -> None:
        """Drops the tensors of the step. A reference cycle with :attr:`origins` would delay this."""
        self.batch, self.losses, self.pairs, self.unregistered_parameters, self.first_inputs = [], [], [], [], None

    @property
    def detached_prediction_layers(self) -> set[str]:
        """Layers on which a prediction depends only through detached tensors."""
        return {
            layer
            for call in self.losses
            if call.has_data_targets
            for layer in call.origin.layers - call.origin.differentiable_layers
        }

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

    @property
    def norm_distances(self) -> dict[str, float]:
        """Smallest distance of the statistics of a batch from the running statistics, by batch norm.

        The distance is the larger of two medians over the channels. One is the median of the absolute differences of
        the means, in units of the batch's standard deviation. The other is the median of the absolute logarithms of the
        ratios of the standard deviations. Channels that are constant in the batch are left out. The running statistics
        already include the batch.
        Synchronizes with the device once.
        """
        if not self._norm_distances:
            return {}
        sizes = [channels.size(1) for _, channels in self._norm_distances]
        rows = torch.cat([channels for _, channels in self._norm_distances], 1).cpu().split(sizes, 1)
        distances: dict[str, float] = {}
        for (layer, _), channels in zip(self._norm_distances, rows, strict=True):
            value = float(channels.nanmedian(1).values.max())
            if not math.isnan(value):
                distances[layer] = min(distances.get(layer, math.inf), value)
        return distances

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
        if not output.is_floating_point() or output.layout is not torch.strided:
            return
        if name in LOSS_INPUTS:
            self._record_loss_call(name, args, kwargs, output)
        elif name in OTHER_LOSS_INPUTS:
            self._record_other_loss_call(name, args, output)
        if name in PAIRING_FUNCTIONS or name in INDEXING_FUNCTIONS:
            self._record_pair(name, args)
        if name in CONCATENATION_FUNCTIONS and self.first_inputs is None and origin.layers and args:
            self._record_concatenated_inputs(args[0])
        layer = self._find_layer(args, kwargs, output)
        if layer is not None:
            self._record_layer_call(layer, name, args, kwargs, output)
        elif name in NORMALIZATIONS and len(self._numeric_layers) <= 1:
            self.is_normalized = True
        if name in ACTIVATIONS and origin.layer is not None:
            self._add_mode_functions(self._normalized_layers.get(origin.layer, origin.layer), origin)
        if name in BOUNDED_ACTIVATIONS and origin.layer is not None:
            low, high = BOUNDED_ACTIVATIONS[name]
            margin = SATURATION_MARGIN * (high - low)
            samples = _subsample(output)
            share = ((samples < low + margin) | (samples > high - margin)).float().mean()
            self._activation_shares.append((origin.layer, name, share))

    def _add_mode_functions(self, layer: str, origin: Origin) -> None:
        self.mode_functions[layer] = self.mode_functions.get(layer, frozenset()) | origin.mode_functions

    def _record_concatenated_inputs(self, tensors: Any) -> None:
        """Records numeric data that are concatenated with outputs of layers, such as embeddings, as first inputs."""
        for tensor in iter_tensors(tensors):
            origin = self.origins.origin_of(tensor)
            is_data = bool(origin.batch_indices) and not origin.layers
            if is_data and tensor.is_floating_point() and tensor.ndim == 2 and len(tensor) == self.samples:
                self.first_inputs, self.first_input_rows = _subsample(tensor), len(tensor)
                return

    def _find_layer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor) -> str | None:
        """Returns the layer of the first argument that is a parameter. Records parameters of no submodule."""
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
        return layer

    def _record_layer_call(
        self, layer: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
    ) -> None:
        """Records the input and the output of a layer."""
        if name == "batch_norm":
            self._record_norm_distance(layer, *args[:3], is_training=kwargs.get("training", False))
        self.called_layers.add(layer)
        inputs = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if inputs is None or not inputs.is_floating_point() or id(inputs) in self.layer_names:
            return
        origin = self.origins.origin_of(inputs)
        if output.requires_grad:
            self.detached_input_layers |= origin.layers - origin.differentiable_layers
        if not origin.layers and not origin.batch_indices and self.untracked_input_layer is None:
            self.untracked_input_layer, self.layers_before_untracked = layer, self.called_layers - {layer}
        self._add_mode_functions(layer, origin)
        if name in NORMALIZATIONS and origin.layer is not None:
            self._normalized_layers[layer] = origin.layer
        self._numeric_layers.add(layer)
        if name in NORMALIZATIONS and len(self._numeric_layers) <= 2:
            self.is_normalized = True
        if origin.batch_indices and not origin.layers and self.first_inputs is None:
            self.first_inputs, self.first_input_rows = _subsample(inputs), len(inputs) if inputs.ndim else 1
        samples = _subsample(output)
        spread = samples.new_tensor(math.nan)
        if self.samples > 1 and output.ndim > 1 and output.size(0) == self.samples:
            spread = samples.std(0).mean() / samples.square().mean().sqrt().clamp_min(1e-30)
        self._layer_spreads.append((layer, spread))

    def _record_norm_distance(
        self,
        layer: str,
        inputs: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_variance: torch.Tensor | None,
        *,
        is_training: bool,
    ) -> None:
        """Records the distance of the statistics of a batch from the running ones, see :attr:`norm_distances`."""
        if not is_training or running_mean is None or running_variance is None:
            return
        variance, mean = torch.var_mean(plain_values(inputs).float(), [0, *range(2, inputs.ndim)])
        scale = torch.where(variance > MIN_VARIANCE, variance, math.nan).sqrt()
        shifts = (mean - running_mean).abs() / scale
        stretches = (scale / running_variance.clamp_min(MIN_VARIANCE).sqrt()).log().abs()
        self._norm_distances.append((layer, torch.stack([shifts, stretches]).float()))

    def _record_loss_call(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
    ) -> None:
        """Records the arguments of a standard loss."""
        tensors = [*args[:2], *(kwargs[key] for key in ("input", "target") if key in kwargs)]
        if len(tensors) != 2 or not all(isinstance(tensor, torch.Tensor) for tensor in tensors) or len(args) > 2:
            return
        prediction, target = tensors
        if not prediction.numel() or not target.numel() or not torch.is_grad_enabled():  # such as in a metric
            return
        origin = self.origins.origin_of(prediction)
        if not origin.layers:
            if not self.origins.origin_of(target).layers:
                return
            prediction, target = target, prediction  # some users swap the arguments
            origin = self.origins.origin_of(prediction)
        other_arguments = {key: value for key, value in kwargs.items() if key not in {"input", "target"}}
        self._append_loss_call(name, prediction, target, other_arguments, origin, output)

    def _record_other_loss_call(self, name: str, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """Records the arguments of a loss in :data:`OTHER_LOSS_INPUTS`."""
        tensors = [argument for argument in args[:3] if isinstance(argument, torch.Tensor)]
        if len(tensors) < 2 or not all(tensor.numel() for tensor in tensors) or not torch.is_grad_enabled():
            return
        prediction, target = tensors[0], tensors[1 if name == "ctc_loss" else -1]  # CTC has lengths after the target
        origin = self.origins.origin_of(prediction)
        if origin.layers:
            if name == "ctc_loss" and prediction.ndim == 3:
                prediction = prediction.permute(1, 2, 0)  # (N, C, T)
            self._append_loss_call(name, prediction, target, {}, origin, output)

    def _append_loss_call(
        self,
        name: str,
        prediction: torch.Tensor,
        target: torch.Tensor,
        arguments: Mapping[str, Any],
        origin: Origin,
        output: torch.Tensor,
    ) -> None:
        """Records a call of a loss."""
        target_origin = self.origins.origin_of(target)
        self.losses.append(
            LossCall(
                name,
                plain_values(prediction),
                plain_values(target),
                arguments,
                origin,
                plain_values(output),
                target_origin,
            )
        )

    def _record_pair(self, name: str, args: tuple[Any, ...]) -> None:
        """Records a prediction and a target, and whether torch broadcasts them."""
        if name in INDEXING_FUNCTIONS:
            self._record_indexed_pair(args)
            return
        if len(args) < 2 or not all(isinstance(tensor, torch.Tensor) for tensor in args[:2]):
            return
        first_origin, second_origin = (self.origins.origin_of(tensor) for tensor in args[:2])
        prediction, target = args[:2] if first_origin.layers else (args[1], args[0])
        is_pair = (
            bool(first_origin.layers) != bool(second_origin.layers)
            and bool(first_origin.batch_indices)
            and bool(second_origin.batch_indices)
        )
        if is_pair and prediction.shape == target.shape:
            self._append_pair(prediction, target, self.origins.origin_of(target))
        elif (is_pair or (name in ELEMENTWISE and prediction.requires_grad)) and _are_broadcast(prediction, target):
            self.broadcast_mismatches.append(BroadcastMismatch(name, tuple(prediction.shape), tuple(target.shape)))

    def _record_indexed_pair(self, args: tuple[Any, ...]) -> None:
        """Records scores and the class indices that select from them."""
        scores = args[0]
        if not isinstance(scores, torch.Tensor) or scores.ndim < 2 or not self.origins.origin_of(scores).layers:
            return
        for indices in iter_tensors(args[1:]):
            origin = self.origins.origin_of(indices)
            if not indices.is_floating_point() and indices.ndim and origin.batch_indices and not origin.layers:
                self._append_pair(scores, indices.squeeze(1) if indices.ndim == scores.ndim else indices, origin)

    def _append_pair(self, prediction: torch.Tensor, target: torch.Tensor, target_origin: Origin) -> None:
        """Keeps the last pairs of a prediction and a target."""
        origin = self.origins.origin_of(prediction)
        pair = PredictionTargetPair(plain_values(prediction), plain_values(target), origin, target_origin)
        self.pairs = [*self.pairs, pair][-MAX_PAIRS:]


def _are_broadcast(prediction: torch.Tensor, target: torch.Tensor) -> bool:
    """Returns whether tensors of the same size have different shapes, so that torch makes them larger.

    With equal numbers of dimensions, as (N, 1) and (1, N), all pairs of entries are probably intended.
    """
    return prediction.ndim != target.ndim and prediction.numel() == target.numel() < math.prod(
        torch.broadcast_shapes(prediction.shape, target.shape)
    )


def _subsample(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a sample of the batch of shape (N, entries)."""
    values = plain_values(tensor)
    samples = values[:MAX_SAMPLES] if tensor.ndim else values[None]
    entries = samples.flatten(1) if samples.ndim > 1 else samples[:, None]
    if entries.size(1) > MAX_ENTRIES:  # evenly spaced
        entries = entries[:, :: entries.size(1) // MAX_ENTRIES]
    return entries.float()

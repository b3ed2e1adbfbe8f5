"""Detects and reinitializes dormant units.

References:
    Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, 2023 (ReDo).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stormproof.distributed.collectives import all_gather
from stormproof.errors import StormproofError
from stormproof.units.functional_trace import ActivationKey, Positions
from stormproof.units.hooks import ActivationHooks
from stormproof.units.unit_axis import Convolution, output_units

ParameterSlice = tuple[torch.Tensor, tuple[slice | torch.Tensor, ...]]
"""A parameter and the index of the entries that belong to some units."""


def is_dormant(magnitudes: torch.Tensor, threshold: float) -> torch.Tensor:
    r"""A unit is dormant if :math:`s_i = E|h_i| / \frac1n \sum_j E|h_j| \le \tau`.

    Args:
        magnitudes: Mean absolute output of each unit of a layer, ``(units,)``.
        threshold: :math:`\tau`. Must be at least 0.

    Returns:
        Boolean mask, ``(units,)``. All True if all outputs of the layer are 0.

    Example:
        >>> is_dormant(torch.tensor([0.0, 0.01, 1.0]), 0.025)
        tensor([ True, False, False])
    """
    return magnitudes <= threshold * magnitudes.mean()


def incoming_weights(layer: nn.Module, units: torch.Tensor) -> Iterator[ParameterSlice]:
    """Yields the incoming weights of ``units`` (indices): rows of a Linear, filters of a convolution, and biases."""
    weight, bias = _weight(layer), layer.bias
    units = units.to(weight.device)
    yield weight, (slice(None), units) if _is_transposed(layer) else (units,)
    if isinstance(bias, torch.Tensor):
        yield bias, (units,)


def outgoing_weights(layer: nn.Module, units: torch.Tensor, positions: Positions) -> Iterator[ParameterSlice]:
    """Yields the outgoing weights of units: columns of a Linear, input channels of a convolution.

    Args:
        layer: Consuming layer.
        units: Indices of the units.
        positions: Positions of all units in the input of ``layer``, ``(all units, positions)``. None if the units are
            in order.
    """
    weight = _weight(layer)
    if positions is not None:
        units = positions.to(units.device)[units].flatten()
    units = units.to(weight.device)
    yield weight, (units,) if _is_transposed(layer) else (slice(None), units)


def reset_moments(optimizers: Iterable[Optimizer], parameter_slice: ParameterSlice) -> None:
    """Sets the optimizer states of these entries to 0, for every state with the shape of the parameter."""
    parameter, index = parameter_slice
    for optimizer in optimizers:
        for state in optimizer.state.get(parameter, {}).values():
            if isinstance(state, torch.Tensor) and state.shape == parameter.shape:
                state[index] = 0


class Redo:
    """Reinitializes dormant units at regular intervals.

    Args:
        every_n_steps: Interval in optimizer steps. Must be at least 1.
        dormant_threshold: Threshold of :func:`is_dormant`. Must be at least 0.
    """

    def __init__(self, every_n_steps: int, dormant_threshold: float) -> None:
        self.every_n_steps = every_n_steps
        self.dormant_threshold = dormant_threshold
        self.reinitialized: Counter[ActivationKey] = Counter()
        self.has_initial_stds = False
        self._initial_stds: dict[str, float] = {}  # by name of the weight or bias
        self._owner_counts: Counter[torch.Tensor] = Counter()  # layers may share a weight
        self._warned_keys: set[ActivationKey] = set()

    def is_due(self, previous_step: int, step: int) -> bool:
        """Returns True if a multiple of ``every_n_steps`` is after ``previous_step``, up to and including ``step``."""
        return step // self.every_n_steps > previous_step // self.every_n_steps

    def record_initial_stds(self, hooks: ActivationHooks) -> None:
        """Records the standard deviations of the weights before training, of lazy ones after the first forward pass."""
        layers = [watch_point.module for watch_point in hooks.input_points.values()]
        self._owner_counts = Counter(parameter for layer in layers for parameter in layer.parameters(recurse=False))
        self.has_initial_stds = True
        for name, watch_point in hooks.input_points.items():
            for parameter_name, parameter in watch_point.module.named_parameters(recurse=False):
                if f"{name}.{parameter_name}" in self._initial_stds:
                    continue
                if is_lazy(parameter):
                    self.has_initial_stds = False
                    continue
                if isinstance(parameter, DTensor):
                    raise StormproofError(
                        f"reinit_every_n_steps requires unsharded weights, but {name}.{parameter_name} is sharded: "
                        "remove reinit_every_n_steps"
                    )
                self._initial_stds[f"{name}.{parameter_name}"] = float(parameter.detach().std(correction=0))

    @torch.no_grad()
    def reinitialize(self, step: int, optimizers: Iterable[Optimizer], hooks: ActivationHooks) -> None:
        """Reinitializes the units that were dormant in the last batch. All ranks must call this together."""
        magnitudes = {
            (watch_point.name, source_layer): batch_extremes.magnitudes.tolist()
            for watch_point in hooks
            for source_layer, batch_extremes in watch_point.extremes_by_source.items()
            if batch_extremes.magnitudes is not None and not watch_point.has_pieces
        }
        gathered_magnitudes = all_gather(magnitudes)
        generator = torch.Generator().manual_seed(step)
        for key in dict.fromkeys(key for rank_magnitudes in gathered_magnitudes for key in rank_magnitudes):
            stacked_magnitudes = torch.tensor(
                [rank_magnitudes[key] for rank_magnitudes in gathered_magnitudes if key in rank_magnitudes],
                dtype=torch.float64,
            )
            dormant_units = is_dormant(stacked_magnitudes.mean(0), self.dormant_threshold).nonzero().flatten()
            if len(dormant_units) and self._can_reinitialize(key, stacked_magnitudes.shape[1], hooks):
                self._reinitialize_units(key, dormant_units, generator, list(optimizers), hooks)
                self.reinitialized[key] += len(dormant_units)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {
            "initial_stds": dict(self._initial_stds),
            "reinitialized": [[*key, count] for key, count in self.reinitialized.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state."""
        self._initial_stds = dict(state["initial_stds"])
        self.reinitialized = Counter(
            {(module, source_layer): count for module, source_layer, count in state["reinitialized"]}
        )

    def _can_reinitialize(self, key: ActivationKey, unit_count: int, hooks: ActivationHooks) -> bool:
        """Returns True if incoming and outgoing weights of the units are known. Otherwise warns once."""
        name, source_layer = key
        consumers = hooks.consumers.get(key)
        if consumers is not None and source_layer is not None:
            layers = [hooks.input_points[layer_name].module for layer_name in (source_layer, *consumers)]
            norm = hooks.get(name).batch_norms.get(source_layer)
            affected_modules = [*layers, hooks.batch_norms[norm]] if norm is not None else layers
            layer_units = output_units(layers[0])
            is_supported = all(map(_has_row_per_unit, layers)) and all(
                map(self._has_own_trained_weights, affected_modules)
            )
            if is_supported and layer_units is not None and layer_units[1] == unit_count:
                return True
        if key not in self._warned_keys:
            self._warned_keys.add(key)
            rank_zero_warn(
                f"{name}: dormant units are not reinitialized, because this requires that one trainable Linear or "
                "convolution computes the units and that only trainable Linear or convolution layers consume them."
            )
        return False

    def _has_own_trained_weights(self, layer: nn.Module) -> bool:
        """Returns True if all weights of a layer are trained and not shared with other layers."""
        parameters = layer.parameters(recurse=False)
        return all(parameter.requires_grad and self._owner_counts[parameter] <= 1 for parameter in parameters)

    def _reinitialize_units(
        self,
        key: ActivationKey,
        units: torch.Tensor,
        generator: torch.Generator,
        optimizers: list[Optimizer],
        hooks: ActivationHooks,
    ) -> None:
        """Draws incoming weights, resets the batch norm, and sets outgoing weights to 0."""
        consumers = hooks.consumers[key]
        assert key[1] is not None
        assert consumers is not None
        layer = hooks.input_points[key[1]].module
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in layer.named_parameters(recurse=False)}
        for parameter, index in incoming_weights(layer, units):
            std = self._initial_stds[f"{key[1]}.{names[parameter]}"]
            values = torch.randn(parameter[index].shape, generator=generator) * std
            parameter[index] = values.to(parameter)
            reset_moments(optimizers, (parameter, index))
        norm = hooks.get(key[0]).batch_norms.get(key[1])
        if norm is not None:
            _reset_batch_norm(hooks.batch_norms[norm], units, optimizers)
        for name, positions in consumers.items():
            for parameter, index in outgoing_weights(hooks.input_points[name].module, units, positions):
                parameter[index] = 0
                reset_moments(optimizers, (parameter, index))


def _reset_batch_norm(norm: nn.Module, units: torch.Tensor, optimizers: list[Optimizer]) -> None:
    """Resets some channels of a batch norm to their initial values."""
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        tensor = getattr(norm, name)
        if tensor is not None:
            tensor[units.to(tensor.device)] = value
            reset_moments(optimizers, (tensor, (units.to(tensor.device),)))


def _has_row_per_unit(layer: nn.Module) -> bool:
    """Returns True if a layer has one row of weights per unit. False for parametrized weights and groups."""
    is_known_type = isinstance(layer, nn.Linear | Convolution)
    return is_known_type and isinstance(layer.weight, nn.Parameter) and getattr(layer, "groups", 1) == 1


def _weight(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight


def _is_transposed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "transposed", False))

"""The gradient of one optimizer step: measured on the device, and read later."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch

from stormproof.distributed.dtensor import ShardRows, gather_shards, iterate_shards
from stormproof.gradients.norms import largest_entry, local_norms
from stormproof.gradients.update_ratio import UpdateRatio, WeightSampler, moments_from_row, ratio_from_moments
from stormproof.lightning.layer_names import get_layer_names


@dataclass(frozen=True)
class GradientMeasurement:
    """The gradient of one optimizer step, and what became of it.

    Attributes:
        step: the optimizer steps that are done with it, from 1.
        optimizer: the number of its optimizer, from 0.
        norms: the 2-norm by layer, over the parameters that had a gradient.
        updates: the update-to-weight ratio by layer and, as ``total``, over all; None where all weights were zero, and
            empty if the step was skipped.
        clipped: whether it was clipped; None where nothing clips.
        skipped: whether the optimizer left the weights alone: there was no gradient, or the gradient scaler found it
            not to be finite.
    """

    step: int
    optimizer: int
    norms: dict[str, float]
    updates: dict[str, UpdateRatio | None]
    clipped: bool | None
    skipped: bool

    @property
    def total(self) -> float:
        """The 2-norm over all layers."""
        return math.hypot(*self.norms.values())

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        updates = {layer: ratio and [ratio.value, ratio.half_width] for layer, ratio in self.updates.items()}
        return {**vars(self), "norms": dict(self.norms), "updates": updates}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GradientMeasurement:
        """The measurement whose :meth:`state_dict` was ``state``."""
        updates = {layer: ratio and UpdateRatio(*ratio) for layer, ratio in state["updates"].items()}
        return cls(**{**state, "norms": dict(state["norms"]), "updates": updates})


class MeasuredParameters:
    """The parameters of an optimizer that have a gradient, and the layers that they are of.

    Args:
        module: gives the layers their names.
        parameters: those that have a gradient; there may be none.
    """

    def __init__(self, module: torch.nn.Module, parameters: list[torch.Tensor]) -> None:
        self.parameters = parameters
        self.parameter_layers = get_layer_names(module, parameters)
        self.sampler = WeightSampler(parameters) if parameters else None

    def gradients(self) -> list[torch.Tensor]:
        """Their gradients as they are."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


class PendingMeasurement:
    """A measurement whose numbers are still on the device: nothing here waits for it, but :meth:`read`.

    Args:
        step: the optimizer steps that will be done with it.
        optimizer: the number of its optimizer.
        parameters: the parameters.
        scaler: of the gradient; None where there is none.
        scaled: whether the gradient is still multiplied by its scale.
    """

    def __init__(self, step: int, optimizer: int, parameters: MeasuredParameters, scaler: Any, *, scaled: bool) -> None:
        self.step, self.optimizer = step, optimizer
        self._measured_parameters = parameters
        self._scaler = scaler
        self._norms: ShardRows = []
        self._updates: ShardRows = []
        self._scale: torch.Tensor | None = None
        self._clip_limit: float | None = None
        self._largest_entry: torch.Tensor | None = None  # where that is what is limited
        if parameters.sampler is not None:
            gradients = parameters.gradients()
            self._norms = gather_shards(local_norms(gradients)[:, None], gradients)
            self._weights_before = parameters.sampler.sample()
            if scaler is not None and scaled:
                self._scale = scaler.scale(self._weights_before.new_ones(()))  # get_scale() would wait for the device

    @property
    def layers(self) -> list[str]:
        """The layers that had a gradient."""
        return list(dict.fromkeys(self._measured_parameters.parameter_layers))

    def record_clipping(self, clip_val: float, by_value: bool) -> None:
        """Notes what the gradient as it is, before it is unscaled, is about to be clipped to."""
        self._clip_limit = clip_val
        if by_value and self._measured_parameters.sampler is not None:
            self._largest_entry = largest_entry(self._measured_parameters.gradients())

    def record_step(self) -> None:
        """The optimizer has stepped: compares the weights with what they were."""
        sampler = self._measured_parameters.sampler
        if sampler is not None:
            self._updates = gather_shards(
                sampler.gram_rows(self._weights_before, sampler.sample()), self._measured_parameters.parameters
            )

    def read(self) -> GradientMeasurement:
        """The measurement as plain numbers; waits for the device."""
        raw_norms = self._norms_by_layer()
        scale = 1.0 if self._scale is None else float(self._scale)
        norms = {layer: norm / scale for layer, norm in raw_norms.items()}
        # a fused optimizer is asked to step, and does not
        is_step_skipped = self._scaler is not None and not all(map(math.isfinite, norms.values()))
        updates = {} if is_step_skipped else self._update_ratios()
        clipped = None
        if self._clip_limit is not None and norms:
            size = math.hypot(*raw_norms.values()) if self._largest_entry is None else float(self._largest_entry)
            clipped = size > self._clip_limit
        return GradientMeasurement(self.step, self.optimizer, norms, updates, clipped, skipped=not updates)

    def _norms_by_layer(self) -> dict[str, float]:
        squares = dict.fromkeys(self.layers, 0.0)
        for index, (norm,) in iterate_shards(self._norms):
            squares[self._measured_parameters.parameter_layers[index]] += norm * norm
        return {layer: math.sqrt(square) for layer, square in squares.items()}

    def _update_ratios(self) -> dict[str, UpdateRatio | None]:
        """By layer and, as ``total``, of all; empty unless the optimizer has stepped."""
        total, sums = [0.0] * 5, {layer: [0.0] * 5 for layer in self.layers}
        for index, row in iterate_shards(self._updates):
            moments = moments_from_row(row)
            for accumulator in (total, sums[self._measured_parameters.parameter_layers[index]]):
                accumulator[:] = map(operator.add, accumulator, moments)
        if not self._updates:
            return {}
        return {
            "total": ratio_from_moments(total),
            **{layer: ratio_from_moments(accumulator) for layer, accumulator in sums.items()},
        }

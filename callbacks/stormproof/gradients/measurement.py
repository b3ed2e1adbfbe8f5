"""Measures the gradient of one optimizer step on the device, to be read later."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from stormproof.distributed.dtensor import ShardRows, gather_shards, iterate_shards
from stormproof.gradients.noise_scale import NoiseEstimate, PartialSquare, estimate_noise, noise_scale
from stormproof.gradients.norms import GradientNorms, largest_entry
from stormproof.gradients.update_ratio import UpdateRatio, WeightSampler, moments_from_row, ratio_from_moments
from stormproof.lightning.layer_names import get_layer_names


@dataclass(frozen=True)
class GradientMeasurement:
    """Gradient and update of one optimizer step.

    Attributes:
        step: Step of the optimizer, from 1.
        optimizer: Index of the optimizer, from 0.
        norms: 2-norms by layer, over parameters with a gradient.
        updates: Update-to-weight ratios by layer and, as ``total``, over all layers. None if all weights are zero.
            Empty if the step was skipped.
        clipped: Whether the gradient was clipped. None if clipping is disabled.
        skipped: Whether the weights did not change, because there was no gradient or because the gradient scaler
            skipped a non-finite gradient.
        is_loggable: Whether the measurement may be logged.
        noise: Estimates for the noise scale. None if they were not measured.
        batch_size: Samples of the step, on all ranks. None if ``noise`` is None.
    """

    step: int
    optimizer: int
    norms: dict[str, float]
    updates: dict[str, UpdateRatio | None]
    clipped: bool | None
    skipped: bool
    is_loggable: bool = True
    noise: NoiseEstimate | None = None
    batch_size: int | None = None

    @property
    def total(self) -> float:
        """2-norm over all layers."""
        return math.hypot(*self.norms.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        updates = {layer: ratio and [ratio.value, ratio.half_width] for layer, ratio in self.updates.items()}
        noise = None if self.noise is None else list(vars(self.noise).values())
        return {**vars(self), "norms": dict(self.norms), "updates": updates, "noise": noise}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GradientMeasurement:
        """Creates a measurement from the result of :meth:`state_dict`."""
        updates = {layer: ratio and UpdateRatio(*ratio) for layer, ratio in state["updates"].items()}
        noise = state.get("noise")  # absent in checkpoints of earlier versions
        return cls(
            **{
                **state,
                "norms": dict(state["norms"]),
                "updates": updates,
                "noise": None if noise is None else NoiseEstimate(*noise),
            }
        )


def noise_scale_of_usual_batches(measurements: Iterable[GradientMeasurement]) -> tuple[float | None, int | None]:
    """Returns the noise scale of the steps with the most frequent batch size, and this size.

    The last batch of an epoch can be smaller, and its estimates vary more.

    Args:
        measurements: Measurements of a run. Those without estimates are ignored.
    """
    measured = [measurement for measurement in measurements if measurement.noise is not None]
    if not measured:
        return None, None
    ((batch_size, _),) = Counter(measurement.batch_size for measurement in measured).most_common(1)
    estimates = (entry.noise for entry in measured if entry.batch_size == batch_size and entry.noise is not None)
    return noise_scale(estimates), batch_size


class MeasuredParameters:
    """Parameters of an optimizer that have a gradient, and their layers.

    Args:
        module: Module that contains the layers.
        parameters: Parameters with a gradient. May be empty.
    """

    def __init__(self, module: torch.nn.Module, parameters: list[torch.Tensor]) -> None:
        self.parameters = parameters
        self.parameter_layers = get_layer_names(module, parameters)
        self.sampler = WeightSampler(parameters) if parameters else None

    def gradients(self) -> list[torch.Tensor]:
        """Returns the current gradients."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


class PendingMeasurement:
    """A measurement whose values are on the device. Only :meth:`read` synchronizes with it.

    Args:
        step: Step of the optimizer, from 1.
        optimizer: Index of the optimizer, from 0.
        parameters: Parameters to measure.
        norms: Norms of their gradients. None if no parameter has a gradient.
        scaler: Gradient scaler, or None.
        scaled: Whether the gradient is still multiplied by the scale of ``scaler``.
        is_loggable: Whether the measurement may be logged.
        part: Squared norm of the gradient over a part of the batch. None if it was not measured.
    """

    def __init__(
        self,
        step: int,
        optimizer: int,
        parameters: MeasuredParameters,
        norms: GradientNorms | None,
        scaler: Any,
        *,
        scaled: bool,
        is_loggable: bool,
        part: PartialSquare | None = None,
    ) -> None:
        self.step, self.optimizer, self._is_loggable = step, optimizer, is_loggable
        self._measured_parameters = parameters
        self._scaler = scaler
        self._part = part
        self._norms: ShardRows = [] if norms is None else norms.rows
        self._updates: ShardRows = []
        self._scale: torch.Tensor | None = None
        self._clip_limit: float | None = None
        self._largest_entry: torch.Tensor | None = None  # None unless gradients are clipped by value
        if parameters.sampler is not None:
            self._weights_before = parameters.sampler.sample()
            if scaler is not None and scaled:
                self._scale = scaler.scale(self._weights_before.new_ones(()))  # get_scale() would synchronize

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have a gradient."""
        return list(dict.fromkeys(self._measured_parameters.parameter_layers))

    def record_clipping(self, clip_val: float, by_value: bool) -> None:
        """Records the limit of clipping, which applies to the gradient before it is unscaled."""
        self._clip_limit = clip_val
        if by_value and self._measured_parameters.sampler is not None:
            self._largest_entry = largest_entry(self._measured_parameters.gradients())

    def record_step(self) -> None:
        """Compares the weights after the optimizer step with those before it."""
        sampler = self._measured_parameters.sampler
        if sampler is not None:
            self._updates = gather_shards(
                sampler.gram_rows(self._weights_before, sampler.sample()), self._measured_parameters.parameters
            )

    def read(self) -> GradientMeasurement:
        """Returns the measured values. Synchronizes with the device."""
        raw_norms = self._norms_by_layer()
        scale = 1.0 if self._scale is None else float(self._scale)
        norms = {layer: norm / scale for layer, norm in raw_norms.items()}
        # step() of a fused optimizer is called, but does not change the weights
        is_step_skipped = self._scaler is not None and not all(map(math.isfinite, norms.values()))
        updates = {} if is_step_skipped else self._update_ratios()
        clipped = None
        if self._clip_limit is not None and norms:
            size = math.hypot(*raw_norms.values()) if self._largest_entry is None else float(self._largest_entry)
            clipped = size > self._clip_limit
        return GradientMeasurement(
            self.step,
            self.optimizer,
            norms,
            updates,
            clipped,
            skipped=not updates,
            is_loggable=self._is_loggable,
            noise=self._estimate_noise(math.hypot(*norms.values())),
            batch_size=None if self._part is None else self._part.whole_size,
        )

    def _estimate_noise(self, norm: float) -> NoiseEstimate | None:
        if self._part is None:
            return None
        part_square = float(self._part.square)
        if not math.isfinite(part_square) or not math.isfinite(norm):
            return None
        return estimate_noise(part_square, norm**2, self._part.size, self._part.whole_size)

    def _norms_by_layer(self) -> dict[str, float]:
        squares = dict.fromkeys(self.layers, 0.0)
        for index, (norm,) in iterate_shards(self._norms):
            squares[self._measured_parameters.parameter_layers[index]] += norm * norm
        return {layer: math.sqrt(square) for layer, square in squares.items()}

    def _update_ratios(self) -> dict[str, UpdateRatio | None]:
        """Returns ratios by layer and, as ``total``, over all layers. Empty unless the optimizer has stepped."""
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

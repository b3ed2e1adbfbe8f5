"""The gradient of one optimizer step: measured on the device, and read later."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch

from stormproof.distributed.dtensor import Rows, all_parts, each_part
from stormproof.gradients.norms import largest_entry, own_norms
from stormproof.gradients.update_ratio import UpdateRatio, WeightSampler, moments_of, ratio_of
from stormproof.lightning.layer_names import layers_of


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
        self.owners = layers_of(module, parameters)
        self.sampler = WeightSampler(parameters) if parameters else None

    def gradients(self) -> list[torch.Tensor]:
        """Their gradients as they are."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


class Measuring:
    """A measurement whose numbers are still on the device: nothing here waits for it, but :meth:`read`.

    Args:
        step: the optimizer steps that will be done with it.
        optimizer: the number of its optimizer.
        plan: the parameters.
        scaler: of the gradient; None where there is none.
        scaled: whether the gradient is still multiplied by its scale.
    """

    def __init__(self, step: int, optimizer: int, plan: MeasuredParameters, scaler: Any, *, scaled: bool) -> None:
        self.step, self.optimizer = step, optimizer
        self._plan = plan
        self._scaler = scaler
        self._norms: Rows = []
        self._updates: Rows = []
        self._scale: torch.Tensor | None = None
        self._limit: float | None = None
        self._largest: torch.Tensor | None = None  # where that is what is limited
        if plan.sampler is not None:
            gradients = plan.gradients()
            self._norms = all_parts(own_norms(gradients)[:, None], gradients)
            self._before = plan.sampler.take()
            if scaler is not None and scaled:
                self._scale = scaler.scale(self._before.new_ones(()))  # get_scale() would wait for the device

    @property
    def layers(self) -> list[str]:
        """The layers that had a gradient."""
        return list(dict.fromkeys(self._plan.owners))

    def clip(self, clip_val: float, by_value: bool) -> None:
        """Notes what the gradient as it is, before it is unscaled, is about to be clipped to."""
        self._limit = clip_val
        if by_value and self._plan.sampler is not None:
            self._largest = largest_entry(self._plan.gradients())

    def stepped(self) -> None:
        """The optimizer has stepped: compares the weights with what they were."""
        sampler = self._plan.sampler
        if sampler is not None:
            self._updates = all_parts(sampler.rows(self._before, sampler.take()), self._plan.parameters)

    def read(self) -> GradientMeasurement:
        """The measurement as plain numbers; waits for the device."""
        as_is = self._norms_by_layer()
        scale = 1.0 if self._scale is None else float(self._scale)
        norms = {layer: norm / scale for layer, norm in as_is.items()}
        # a fused optimizer is asked to step, and does not
        refused = self._scaler is not None and not all(map(math.isfinite, norms.values()))
        updates = {} if refused else self._update_ratios()
        clipped = None
        if self._limit is not None and norms:
            size = math.hypot(*as_is.values()) if self._largest is None else float(self._largest)
            clipped = size > self._limit
        return GradientMeasurement(self.step, self.optimizer, norms, updates, clipped, skipped=not updates)

    def _norms_by_layer(self) -> dict[str, float]:
        squares = dict.fromkeys(self.layers, 0.0)
        for number, (norm,) in each_part(self._norms):
            squares[self._plan.owners[number]] += norm * norm
        return {layer: math.sqrt(square) for layer, square in squares.items()}

    def _update_ratios(self) -> dict[str, UpdateRatio | None]:
        """By layer and, as ``total``, of all; empty unless the optimizer has stepped."""
        total, sums = [0.0] * 5, {layer: [0.0] * 5 for layer in self.layers}
        for number, row in each_part(self._updates):
            moments = moments_of(row)
            for each in (total, sums[self._plan.owners[number]]):
                each[:] = map(operator.add, each, moments)
        if not self._updates:
            return {}
        return {"total": ratio_of(total), **{layer: ratio_of(each) for layer, each in sums.items()}}

"""The gradient of one optimizer step: measured on the device, and read later."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from stormproof.gradient_norms import by_layer, largest_entry, squared_norms
from stormproof.layer_names import layers_of
from stormproof.update_ratio import UpdateRatio, WeightSampler, ratio_of


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
        owners = layers_of(module, parameters)
        self.parameters = parameters
        self.layers = list(dict.fromkeys(owners))
        if parameters:
            numbers = [self.layers.index(owner) for owner in owners]
            self.numbers = torch.tensor(numbers, device=parameters[0].device)
            self.sampler = WeightSampler(parameters)

    def gradients(self) -> list[torch.Tensor]:
        """Their gradients as they are."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums (..., layers) of values (..., parameters)."""
        return by_layer(values, self.numbers, len(self.layers))


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
        self._clipped: torch.Tensor | None = None
        self._moments: torch.Tensor | None = None
        if plan.parameters:
            self._as_is = self._squares = plan.sums(squared_norms(plan.gradients()))
            if scaler is not None and scaled:
                scale = scaler.scale(torch.ones((), device=self._as_is.device))  # get_scale() would wait for the device
                self._squares = self._as_is / scale.to(self._as_is.dtype).square()
            self._before = plan.sampler.take()

    @property
    def layers(self) -> list[str]:
        """The layers that had a gradient."""
        return self._plan.layers

    def clip(self, clip_val: float, by_value: bool) -> None:
        """Notes whether the gradient as it is exceeds what it is about to be clipped to."""
        if self._plan.parameters:
            size = largest_entry(self._plan.gradients()) if by_value else self._as_is.sum().sqrt()
            self._clipped = size > clip_val

    def stepped(self) -> None:
        """The optimizer has stepped: compares the weights with what they were."""
        if self._plan.parameters:
            moments = self._plan.sampler.moments(self._before, self._plan.sampler.take())
            self._moments = self._plan.sums(moments)

    def read(self) -> GradientMeasurement:
        """The measurement as plain numbers; waits for the device."""
        squares = self._squares.tolist() if self._plan.parameters else []
        norms = dict(zip(self._plan.layers, map(math.sqrt, squares), strict=True))
        # a fused optimizer is asked to step, and does not
        refused = self._scaler is not None and not all(map(math.isfinite, norms.values()))
        updates: dict[str, UpdateRatio | None] = {}
        if self._moments is not None and not refused:
            updates = {"total": ratio_of(self._moments.sum(1).tolist())}
            updates |= dict(zip(self._plan.layers, map(ratio_of, self._moments.T.tolist()), strict=True))
        clipped = None if self._clipped is None else bool(self._clipped)
        return GradientMeasurement(self.step, self.optimizer, norms, updates, clipped, skipped=not updates)

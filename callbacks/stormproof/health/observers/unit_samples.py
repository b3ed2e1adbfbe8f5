"""Chooses between measurements of units in training and in validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stormproof.health.measures.dead_shares import choose_measurements
from stormproof.health.observations.units import Units
from stormproof.units.unit_activity import MIN_INPUTS, UnitActivity


class UnitSource(Protocol):
    """Source of unit measurements, for example :class:`stormproof.DeadNeuronDetector`."""

    @property
    def activity(self) -> dict[str, UnitActivity]:
        """Activity by layer from the last validation pass, or from the last training epoch before the first pass."""
        ...

    @property
    def running_activity(self) -> dict[str, UnitActivity]:
        """Activity by layer in the current training epoch, on this rank."""
        ...


class UnitSamples:
    """Keeps the last sufficient sample of each layer's units.

    Args:
        module: Module whose units are measured.
        source: Source of the measurements, if any.
    """

    def __init__(self, module: nn.Module, source: UnitSource | None) -> None:
        self._source = source
        self._samples: dict[str, UnitActivity] = {}
        self._inactive: tuple[dict[str, UnitActivity] | None, dict[str, UnitActivity]] = None, {}
        self._has_batch_norm = any(
            isinstance(submodule, _BatchNorm) and submodule.track_running_stats for submodule in module.modules()
        )

    def observe(self, mode_functions: Mapping[str, Collection[str]]) -> Units:
        """Returns the current activity of the units.

        Args:
            mode_functions: Functions before the activation after a layer that compute something else in evaluation
                mode, by layer. In untraced layers, any batch norm of the network counts.
        """
        if self._source is None:
            return Units()
        exact_activity = {name: entry for name, entry in self._source.activity.items() if entry.exact}
        running_activity = self._source.running_activity
        for name, running_sample in running_activity.items():
            # keeps the sample of the previous epoch until the current one is large enough
            if running_sample.inputs >= MIN_INPUTS or name not in self._samples:
                self._samples[name] = running_sample
        untraced_functions = {"batch_norm"} if self._has_batch_norm else set()
        functions = {
            name: mode_functions.get(entry.layer or "", untraced_functions) for name, entry in exact_activity.items()
        }
        activity, inactive = choose_measurements(self._samples, exact_activity, running_activity, functions)
        if self._samples.keys() & exact_activity.keys() and inactive is not None:
            lagging = {name: entry for name, entry in inactive.items() if "batch_norm" in functions[name]}
            others = {name: entry for name, entry in inactive.items() if name not in lagging}
            self._inactive = lagging, others
        return Units(activity, *self._inactive)

"""Inputs and targets."""

from __future__ import annotations

from dataclasses import dataclass

LARGE_INPUT, SMALL_INPUT, MAX_SCALE_RATIO = 10.0, 1e-3, 300.0
"""Root mean squares of the input that usual initializations do not suit, and the maximum ratio of the scales of two
features."""


@dataclass(frozen=True)
class InputStats:
    """Statistics of the input of the first layer.

    Attributes:
        mean: Mean of all entries.
        rms: Root mean square of all entries.
        largest_scale: Largest standard deviation of an entry over the samples.
        smallest_scale: Smallest nonzero standard deviation of an entry over the samples.
        is_normalized: Whether one of the first two layers is a norm.
    """

    mean: float
    rms: float
    largest_scale: float
    smallest_scale: float
    is_normalized: bool


@dataclass(frozen=True)
class Data:
    """Inputs and targets of a run.

    Attributes:
        input_stats: Statistics of the input of the first layer. None if it is not numeric.
        identical_targets: Number of samples with identical targets. None once two targets differ.
        targets_depend_on_inputs: Whether a statistical test finds a dependence of the targets on the inputs. None if
            unknown.
    """

    input_stats: InputStats | None = None
    identical_targets: int | None = 0
    targets_depend_on_inputs: bool | None = None

    @property
    def has_badly_scaled_inputs(self) -> bool:
        """Returns whether the scale, offset or feature scales of the input are extreme and no norm follows."""
        stats = self.input_stats
        if stats is None or stats.is_normalized:
            return False
        is_uneven = stats.largest_scale > LARGE_INPUT and stats.largest_scale > MAX_SCALE_RATIO * stats.smallest_scale
        return (
            stats.rms > LARGE_INPUT
            or stats.rms < SMALL_INPUT
            or abs(stats.mean) > LARGE_INPUT * stats.largest_scale > 0
            or is_uneven
        )

"""A place at which units are watched, and what a batch leaves there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from stormproof.units.functional_trace import Positions
from stormproof.units.pieces import Pieces


@dataclass
class Seen:
    """What a batch left at one place.

    Attributes:
        low: (units,), the smallest output of each unit.
        high: (units,), the largest.
        samples: inputs.
        nonzero: the share of outputs that are not 0, if asked for.
        sizes: (units,), the mean absolute outputs, if asked for.
    """

    low: torch.Tensor
    high: torch.Tensor
    samples: int
    nonzero: torch.Tensor | None = None
    sizes: torch.Tensor | None = None


@dataclass(frozen=True)
class Feed:
    """A functional activation that a layer takes.

    Attributes:
        before: the layer before it.
        dimension: of the input, the one that counts the units.
        positions: of units that were flattened with their positions, where they lie along it.
        zero_only: whether its values tell no more of a unit than whether that is always 0.
    """

    before: str | None
    dimension: int
    positions: Positions
    zero_only: bool = False


@dataclass
class Watch:
    """One place: the output of a module, or the input of a layer that consumes a functional activation.

    Attributes:
        name: of that module.
        module: it.
        function: the activation's name, as far as known.
        seen: of the batch that passes, by the layer before it (None if none is known).
        origins: by the layer that was called last before it, the one whose output it takes and the dimension of the
            units, as far as they were traced.
        norms: by the layer before it, the batch norm between the two.
        feeds: what it takes, by the number of its call in a batch: of a layer that is called again and again, the
            input may be an activation's output in some calls only.
        mixed: whether some call took something else, in the batch that was traced.
        turn: the calls so far in the batch that passes.
        called: whether anything has passed it.
        unclear: whether something has of which it cannot be told which dimension counts the units.
    """

    name: str
    module: nn.Module
    function: str = ""
    seen: dict[str | None, Seen] = field(default_factory=dict)
    origins: dict[str | None, tuple[str | None, int]] = field(default_factory=dict)
    norms: dict[str | None, str | None] = field(default_factory=dict)
    feeds: dict[int, Feed] = field(default_factory=dict)
    mixed: bool = False
    turn: int = 0
    called: bool = False
    unclear: bool = False

    @property
    def feed(self) -> Feed | None:
        """What it takes in the call that comes now: if that is always the same, also in calls more than were traced."""
        return self.feeds.get(self.turn, None if self.mixed else self.feeds.get(0))

    @property
    def has_pieces(self) -> bool:
        """Whether it is pieces that are watched, and not units."""
        return isinstance(self.module, Pieces)

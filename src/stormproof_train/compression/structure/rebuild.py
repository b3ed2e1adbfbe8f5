"""A network built as it was, and made as small as it became."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from stormproof_train.compression.structure.factoring import factorize
from stormproof_train.compression.structure.shapes import apply_shapes
from stormproof_train.config.signature_binding import forwards_arguments


@dataclass(frozen=True)
class Structure:
    """What makes a network smaller than its config says.

    Attributes:
        shapes: by name of a layer the shape of its weight, or by name of a parameter its own, where it is another.
        ranks: of the dense layers that are two factors.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)


@forwards_arguments("network")
def apply_structure(
    network: nn.Module,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranks: Mapping[str, int] | None = None,
) -> nn.Module:
    """Gives a network the shapes of a pruned one, then factors layers; its weights are then loaded.

    Args:
        network: as its config builds it; changed in place.
        shapes: by the name of a layer the shape of its weight, by that of a bare parameter its own.
        ranks: by the name of a linear layer the rank of the product that replaces it.

    Returns:
        The network itself.

    Raises:
        ValueError: if a name is none of the network's, or a shape or rank not less than what it has.

    Example:
        >>> apply_structure(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6)), {"0": [3, 4], "1": [6, 3]}, {"1": 1})
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): Sequential(
            (0): Linear(in_features=3, out_features=1, bias=False)
            (1): Linear(in_features=1, out_features=6, bias=True)
          )
        )
    """
    apply_shapes(network, shapes or {})
    factorize(network, ranks or {})
    return network

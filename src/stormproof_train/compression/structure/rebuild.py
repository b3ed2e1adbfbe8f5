"""Rebuilds compressed networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from stormproof_train.compression.structure.factoring import factorize
from stormproof_train.compression.structure.shapes import apply_shapes
from stormproof_train.config.signature_binding import forwards_arguments


@dataclass(frozen=True)
class Structure:
    """Differences of a compressed network from its config.

    Attributes:
        shapes: Changed shapes by name: of the weight for a layer, of the parameter itself for a bare parameter.
        ranks: Ranks of factored dense layers by name.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)


@forwards_arguments("network")
def apply_structure(
    network: nn.Module,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranks: Mapping[str, int] | None = None,
) -> nn.Module:
    """Shrinks a network to the shapes of a pruned one and factors layers, before its weights are loaded.

    Args:
        network: Network as its config builds it. It is changed in place.
        shapes: Shapes of weights by name of the layer, or of bare parameters by their name.
        ranks: Ranks by name of the linear layer.

    Returns:
        The same network.

    Raises:
        ValueError: If a name does not exist, or a shape or rank is not smaller than the current one.

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

"""Plain command-line overrides: any argument, no ``+``."""

from __future__ import annotations

import re
from collections.abc import Sequence

# group.argument=value, and deeper; a choice (activation=elu), a plain setting (seed=1), an override that already
# carries one of Hydra's signs, and Hydra's own settings stay as they are.
_ARGUMENT = re.compile(r"(?!hydra\.)[A-Za-z_]\w*(\.\w+)+=")


def plain(arguments: Sequence[str]) -> list[str]:
    """Lets ``group.argument=value`` set an argument whether or not the group's YAML names it.

    YAML names only what differs from the signature, and Hydra refuses to set what it does not name unless the
    override begins with ``++`` (add or change).

    Example:
        >>> plain(["activation=elu", "activation.alpha=0.5", "-m", "hydra.sweep.dir=x"])
        ['activation=elu', '++activation.alpha=0.5', '-m', 'hydra.sweep.dir=x']
    """
    return [f"++{argument}" if _ARGUMENT.match(argument) else argument for argument in arguments]

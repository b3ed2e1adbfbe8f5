"""The next step of a module, watched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl

from stormproof.lightning.method_replacement import replace


def watch_step(
    module: pl.LightningModule,
    name: str,
    context: AbstractContextManager[Any],
    receive: Callable[[Any], None],
    before: Callable[[], None] | None = None,
) -> Callable[[], None]:
    """Has the next step run within ``context``, and ``receive`` told what it returned; returns what ends that.

    Args:
        module: whose step.
        name: ``training_step`` or ``validation_step``.
        context: to run it in.
        receive: called afterwards.
        before: called first.
    """
    step = getattr(module, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        stop()
        if before is not None:
            before()
        with context:
            output = step(*args, **kwargs)
        receive(output)
        return output

    stop = replace(module, name, watched)
    return stop

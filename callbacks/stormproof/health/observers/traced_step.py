"""The next step of a module, watched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl

from stormproof.lightning.method_replacement import replace


def trace_next_step(
    module: pl.LightningModule,
    name: str,
    context: AbstractContextManager[Any],
    on_output: Callable[[Any], None],
    before_step: Callable[[], None] | None = None,
) -> Callable[[], None]:
    """Has the next step run within ``context``, and ``on_output`` told what it returned; returns what ends that.

    Args:
        module: whose step.
        name: ``training_step`` or ``validation_step``.
        context: to run it in.
        on_output: called afterwards.
        before_step: called first.
    """
    step = getattr(module, name)

    def traced(*args: Any, **kwargs: Any) -> Any:
        stop()
        if before_step is not None:
            before_step()
        with context:
            output = step(*args, **kwargs)
        on_output(output)
        return output

    stop = replace(module, name, traced)
    return stop

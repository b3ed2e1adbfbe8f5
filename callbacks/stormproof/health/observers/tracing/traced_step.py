"""Traces the next step of a module."""

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
) -> Callable[[], None]:
    """Runs the next step within a context.

    Args:
        module: Module to trace.
        name: ``training_step`` or ``validation_step``.
        context: Context manager for the step.
        on_output: Called with the return value of the step.

    Returns:
        Function that cancels the trace.
    """
    step = getattr(module, name)

    def traced(*args: Any, **kwargs: Any) -> Any:
        stop()
        with context:
            output = step(*args, **kwargs)
        on_output(output)
        return output

    stop = replace(module, name, traced)
    return stop

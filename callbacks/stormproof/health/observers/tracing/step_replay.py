"""Replays training steps without side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from stormproof.data import rng
from stormproof.health.observers.tracing.provenance import Origin, ProvenanceTracker
from stormproof.internal_errors import do_nothing, is_raised_by_signal_handler
from stormproof.resume import metric_state

PLAIN_TYPES = (int, float, complex, str, bytes, type(None))
"""Types of attributes that are restored. Other objects may be shared or changed in place."""


@contextmanager
def replay_without_side_effects(module: nn.Module) -> Iterator[None]:
    """Restores buffers, metrics, plain attributes, logging and random number generators after the context."""
    generators, metrics = rng.capture(), metric_state.capture(module)
    buffers = [
        (submodule, name, original_buffer)
        for submodule in module.modules()
        for name, original_buffer in submodule.named_buffers(recurse=False)
    ]
    for owner, name, buffer in buffers:  # replaced by copies, because the backward pass may need the originals
        setattr(owner, name, buffer.detach().clone())
    plain_attributes = [
        (submodule, {name: value for name, value in vars(submodule).items() if isinstance(value, PLAIN_TYPES)})
        for submodule in module.modules()
    ]
    for name in ("log", "log_dict"):
        object.__setattr__(module, name, do_nothing)
    try:
        with torch.no_grad(), torch._C._EnableTorchFunction():  # noqa: SLF001 (disabled by `isolated`)
            yield
    finally:
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)
        for name in ("log", "log_dict"):
            object.__delattr__(module, name)
        for owner, attributes in plain_attributes:
            vars(owner).update(attributes)
        metric_state.restore(module, metrics)
        rng.restore(generators)


def find_first_non_finite(
    module: pl.LightningModule, layer_names: Mapping[int, str], batch: list[torch.Tensor], step: Callable[[], Any]
) -> tuple[str, str] | None:
    """Finds the first function whose output is NaN or infinite.

    Args:
        module: Module of the step.
        layer_names: Layer names by ``id`` of the parameter.
        batch: Tensors of the batch.
        step: Function that runs the step.

    Returns:
        Names of the function and of its layer. None if all outputs are finite, or if the user's step raised an error
        first.

    Raises:
        Exception: First error of the tracker, see :attr:`ProvenanceTracker.error`.
    """
    matches: list[tuple[str, str]] = []

    def record_non_finite(name: str, _args: Any, _kwargs: Any, output: torch.Tensor, origin: Origin) -> None:
        if not matches and output.is_floating_point() and not bool(torch.isfinite(output).all()):
            matches.append((name, origin.layer or ""))

    tracker = ProvenanceTracker(layer_names, batch, record_non_finite)
    # a step may differentiate its output, for example to compute forces
    with replay_without_side_effects(module), torch.enable_grad(), tracker:
        try:
            step()
        except Exception as error:
            if is_raised_by_signal_handler(error):
                raise
    if tracker.error is not None:
        raise tracker.error
    return matches[0] if matches else None

"""A training step run once more, of which nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.data import rng
from stormproof.health.observers.provenance import Origin, ProvenanceTracker
from stormproof.resume import metric_state


@contextmanager
def replay_without_side_effects(module: pl.LightningModule) -> Iterator[None]:
    """Whatever the module computes within, its buffers, metrics, logs and the random numbers are as before."""
    generators, metrics = rng.capture(), metric_state.capture(module)
    buffers = [
        (submodule, name, original_buffer)
        for submodule in module.modules()
        for name, original_buffer in submodule.named_buffers(recurse=False)
    ]
    for owner, name, buffer in buffers:  # others in their place: the backward pass may want these as they are
        setattr(owner, name, buffer.detach().clone())
    for name in ("log", "log_dict"):
        object.__setattr__(module, name, _do_nothing)
    try:
        with torch.no_grad():
            yield
    finally:
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)
        for name in ("log", "log_dict"):
            object.__delattr__(module, name)
        metric_state.restore(module, metrics)
        rng.restore(generators)


def find_first_non_finite(
    module: pl.LightningModule, layer_names: Mapping[int, str], batch: list[torch.Tensor], step: Callable[[], Any]
) -> tuple[str, str] | None:
    """The function that gives the first number that is not finite, from numbers that are, and the layer it is in.

    Args:
        module: whose step it is.
        layer_names: by parameter.
        batch: its tensors.
        step: runs it.
    """
    matches: list[tuple[str, str]] = []

    def record_non_finite(name: str, _args: Any, _kwargs: Any, output: torch.Tensor, origin: Origin) -> None:
        if not matches and output.is_floating_point() and not bool(torch.isfinite(output).all()):
            matches.append((name, origin.layer or ""))

    with replay_without_side_effects(module), ProvenanceTracker(layer_names, batch, record_non_finite):
        step()
    return matches[0] if matches else None


def _do_nothing(*_: Any, **__: Any) -> None:
    pass

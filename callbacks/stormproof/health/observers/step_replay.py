"""A training step run once more, of which nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.data import rng
from stormproof.health.observers.provenance import Origin, Origins
from stormproof.resume import metric_state


@contextmanager
def without_a_trace(module: pl.LightningModule) -> Iterator[None]:
    """Whatever the module computes within, its buffers, metrics, logs and the random numbers are as before."""
    generators, metrics = rng.capture(), metric_state.capture(module)
    kept = [(each, name, one) for each in module.modules() for name, one in each.named_buffers(recurse=False)]
    for owner, name, buffer in kept:  # others in their place: the backward pass may want these as they are
        setattr(owner, name, buffer.detach().clone())
    for name in ("log", "log_dict"):
        object.__setattr__(module, name, _nothing)
    try:
        with torch.no_grad():
            yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)
        for name in ("log", "log_dict"):
            object.__delattr__(module, name)
        metric_state.restore(module, metrics)
        rng.restore(generators)


def first_not_finite(
    module: pl.LightningModule, layer_names: Mapping[int, str], batch: list[torch.Tensor], step: Callable[[], Any]
) -> tuple[str, str] | None:
    """The function that gives the first number that is not finite, from numbers that are, and the layer it is in.

    Args:
        module: whose step it is.
        layer_names: by parameter.
        batch: its tensors.
        step: runs it.
    """
    found: list[tuple[str, str]] = []

    def look(name: str, _args: Any, _kwargs: Any, made: torch.Tensor, origin: Origin) -> None:
        if not found and made.is_floating_point() and not bool(torch.isfinite(made).all()):
            found.append((name, origin.layer or ""))

    with without_a_trace(module), Origins(layer_names, batch, look):
        step()
    return found[0] if found else None


def _nothing(*_: Any, **__: Any) -> None:
    pass

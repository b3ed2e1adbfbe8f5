"""Locates the first NaN or infinity."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from stormproof.distributed.dtensor import to_local
from stormproof.health.observations.non_finite import NonFiniteOrigin
from stormproof.health.observers.tracing.provenance import BATCH_DEPTH, iter_tensors
from stormproof.health.observers.tracing.step_replay import find_first_non_finite
from stormproof.lightning.layer_names import get_layer_name


def locate_non_finite(
    module: pl.LightningModule,
    batch: Any,
    batch_idx: int,
    step: int,
    layer_names: Mapping[int, str],
    layer_order: list[str],
    *,
    is_traceable: bool,
) -> NonFiniteOrigin:
    """Searches the batch, the weights, and a replay of the step.

    Args:
        module: Module whose loss is not finite.
        batch: Current batch.
        batch_idx: Index of the batch in the epoch.
        step: Number of optimizer steps before the batch.
        layer_names: Layer names by ``id`` of the parameter.
        layer_order: Layers in call order.
        is_traceable: Whether torch functions can be traced in the step.
    """
    tensors = list(iter_tensors(batch, BATCH_DEPTH))
    for index, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            position = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            sample = f"[{position[0]}]" if position else ""
            return NonFiniteOrigin(step, batch_idx, f"batch[{index}]{sample}", "", in_data=True)
    bad_layers = {
        get_layer_name(name)
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and not bool(torch.isfinite(to_local(parameter)).all())
    }
    if bad_layers:  # caused by the previous gradient; the layer nearest to the loss is the first with a NaN
        ordered_layers = [layer for layer in layer_order if layer in bad_layers] or sorted(bad_layers)
        return NonFiniteOrigin(step - 1, batch_idx - 1, "gradient", ordered_layers[-1], in_data=False)
    is_sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())  # needs all ranks to replay
    if not module.automatic_optimization or not is_traceable or is_sharded:
        return NonFiniteOrigin(step, batch_idx, "loss", "", in_data=False)

    def run_step() -> Any:
        takes_index = len(inspect.signature(module.training_step).parameters) > 1
        return module.training_step(batch, batch_idx) if takes_index else module.training_step(batch)

    function, layer = find_first_non_finite(module, layer_names, tensors, run_step) or ("", "")
    return NonFiniteOrigin(step, batch_idx, f"output of {function}" if function else "loss", layer, in_data=False)

"""Where the first number came from that is not finite."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from stormproof.distributed.dtensor import own_part
from stormproof.health.observers.provenance import tensors_in
from stormproof.health.observers.step_replay import first_not_finite
from stormproof.health.record import Broken
from stormproof.lightning.layer_names import layer_of


def where_it_broke(
    module: pl.LightningModule,
    batch: Any,
    batch_idx: int,
    step: int,
    layer_names: Mapping[int, str],
    in_order: list[str],
    *,
    follows: bool,
) -> Broken:
    """Looks for it in the batch, in the weights, and in the step, which is run once more.

    Args:
        module: whose loss is not finite.
        batch: of which.
        batch_idx: its number in the epoch.
        step: the optimizer steps that were done.
        layer_names: by parameter.
        in_order: the layers in the order of their calls.
        follows: whether the step's calls can be seen.
    """
    parts = list(tensors_in(batch))
    for number, part in enumerate(parts):
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            first = (~torch.isfinite(part)).nonzero()[0].tolist()
            sample = f"[{first[0]}]" if first else ""
            return Broken(step, batch_idx, f"batch[{number}]{sample}", "", in_data=True)
    bad = {
        layer_of(name)
        for name, each in module.named_parameters()
        if each.is_floating_point() and not bool(torch.isfinite(own_part(each)).all())
    }
    if bad:  # the gradient of the step before; of all layers that it went on to, the one nearest to the loss
        last = [layer for layer in in_order if layer in bad] or sorted(bad)
        return Broken(step - 1, batch_idx - 1, "gradient", last[-1], in_data=False)
    spread = any(isinstance(each, DTensor) for each in module.parameters())  # a forward pass is all ranks'
    if not module.automatic_optimization or not follows or spread:
        return Broken(step, batch_idx, "loss", "", in_data=False)

    def again() -> Any:
        takes_index = len(inspect.signature(module.training_step).parameters) > 1
        return module.training_step(batch, batch_idx) if takes_index else module.training_step(batch)

    function, layer = first_not_finite(module, layer_names, parts, again) or ("", "")
    return Broken(step, batch_idx, f"output of {function}" if function else "loss", layer, in_data=False)

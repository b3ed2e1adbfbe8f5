"""Builds the DataLoader that fetches the batches of a resumable loader."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader


def rebuild_loader(
    loader: DataLoader[Any], dataset: Any, generator: torch.Generator | None, **arguments: Any
) -> DataLoader[Any]:
    """Returns a DataLoader with the settings of ``loader``, such as workers, but another data set and order.

    Args:
        loader: DataLoader with the settings.
        dataset: Data set of the new loader.
        generator: Generator for the seeds of the workers. The global generator if None.
        arguments: Other arguments of DataLoader that replace those of ``loader``, such as ``batch_sampler``.
    """
    if loader.pin_memory_device:
        arguments["pin_memory_device"] = (
            loader.pin_memory_device
        )  # deprecated: torch warns whenever the argument is passed
    arguments = {"collate_fn": loader.collate_fn, **arguments}
    return DataLoader(
        dataset,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
        **arguments,
    )

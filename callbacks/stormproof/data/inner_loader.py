"""The loader that does the work behind a resumable one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader


def rebuild_loader(
    loader: DataLoader[Any], dataset: Any, generator: torch.Generator | None, **sampling_arguments: Any
) -> DataLoader[Any]:
    """A DataLoader with the workers, the collating and the pinning of ``loader``, over another data set and order.

    Args:
        loader: whose settings to take over.
        dataset: what the new one fetches from.
        generator: where the seeds of its workers come from; None: the process' own.
        sampling_arguments: the arguments that say what to fetch: ``batch_sampler``, or ``sampler`` and ``batch_size``,
            …
    """
    if loader.pin_memory_device:
        sampling_arguments["pin_memory_device"] = (
            loader.pin_memory_device
        )  # deprecated: torch warns where it is given at all
    return DataLoader(
        dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
        **sampling_arguments,
    )

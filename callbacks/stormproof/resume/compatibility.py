"""Checks whether the state of a trainer can be saved and restored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import inf
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.nn.parameter import is_lazy

from stormproof.data.sampler_state import is_stateful
from stormproof.data.shard import current_replica
from stormproof.distributed.collectives import world_size
from stormproof.distributed.ddp_buckets import find_order_problem
from stormproof.errors import NotResumableError
from stormproof.lightning import internals
from stormproof.lightning.layout import REPLICATING_STRATEGIES, Layout
from stormproof.resumable_loader import find_loader_caveats
from stormproof.resume import snapshot


def check_strategy(trainer: pl.Trainer, layout: Layout, requirement: str) -> None:
    """Raises NotResumableError for an unsupported strategy that shards parameters or gradients.

    Args:
        trainer: Trainer before training.
        layout: Its layout.
        requirement: Beginning of the message, such as "DivergenceGuard requires the norm of the whole gradient".
    """
    name = type(trainer.strategy).__name__
    if not layout.is_replicated and not layout.is_sharded:
        raise NotResumableError(
            f"{requirement}, which {name} does not provide. Use one of "
            f"{', '.join(sorted(REPLICATING_STRATEGIES))}, or ModelParallelStrategy."
        )


def check_data_parallelism(layout: Layout) -> None:
    """Raises NotResumableError if resumable loaders divide the data among other ranks than the trainer does."""
    size, loader_size = layout.tensor_parallel_size, world_size() // current_replica().world_size
    if loader_size != size:
        raise NotResumableError(
            f"`resumable` gives the same samples to groups of {loader_size} ranks, but tensor_parallel_size is {size}, "
            "because an earlier trainer in this process created another device mesh. Train in a new process."
        )


def check_loop(trainer: pl.Trainer) -> None:
    """Raises NotResumableError if ``training_step`` fetches batches, so that no code can run between two batches."""
    if internals.fetches_in_training_step(trainer):
        raise NotResumableError(
            "CheckpointRecovery does not support training_step(dataloader_iter). Take a batch instead, so that "
            "Lightning fetches the batches."
        )


def check_initialized(module: pl.LightningModule) -> None:
    """Raises NotResumableError for lazy modules, which torch does not load with ``weights_only=True``."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    lazy_names = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy_names:
        raise NotResumableError(
            f"{lazy_names[0]} belongs to a lazy module and is uninitialized, so it cannot be saved. Run a dummy batch "
            "through the network in setup()."
        )


def find_resume_caveats(trainer: pl.Trainer) -> list[str]:
    """Returns the reasons why a resume will not be exact. Empty if it will be."""
    loaders = snapshot.train_loaders(trainer)
    caveats = [reason for loader in loaders for reason in find_loader_caveats(loader)]
    if internals.get_combining_mode(trainer) == "max_size" and trainer.num_training_batches == inf:
        caveats.append(
            'CombinedLoader(mode="max_size") prefetches if a length is unknown, and does not save which loaders have '
            'ended: use "max_size_cycle" or "min_size"'
        )
    order_caveat = find_order_problem(trainer.strategy.model)
    caveats += [] if order_caveat is None else [order_caveat]
    return caveats + [
        f"{type(callback).__name__} saves the pruned weights, but not its masks"
        for callback in internals.callbacks(trainer)
        if any(base.__name__ == "ModelPruning" for base in type(callback).__mro__)
    ]


def check_loaders(trainer: pl.Trainer, states: Sequence[Any], *, warns: bool) -> None:
    """Compares the training loaders with their states in the checkpoint. With ``warns``, warns if it contains none.

    Raises:
        NotResumableError: If some loaders have a state and others have none, or the other way round.
    """
    saved = sum(state is not None for state in states)
    current = sum(is_stateful(loader) for loader in snapshot.train_loaders(trainer))
    if saved and saved != current:
        raise NotResumableError(
            f"The checkpoint contains positions of training loaders: {saved}. The script has resumable loaders: "
            f"{current}. Wrap the same loaders with resumable(loader) as before, or begin a new run in another folder."
        )
    if warns and current and not saved:
        rank_zero_warn(
            "This resume is not exact: the checkpoint contains no position in the data, because the loaders were not "
            "wrapped with resumable(loader). Training continues with the first batch of the data."
        )


class DynamicShapes:
    """Warns about shapes that ``torch.compile`` makes dynamic in a fit, which a resume cannot repeat."""

    def __init__(self) -> None:
        self._shapes: dict[Any, str] | None = _find_dynamic_shapes()  # before the fit. None after the warning

    def warn_once(self) -> None:
        """Warns once if a shape has become dynamic since the start of the fit."""
        if self._shapes is None or not (new := _find_dynamic_shapes().items() - self._shapes.items()):
            return
        self._shapes = None
        rank_zero_warn(
            f"A resume may not be exact: torch.compile made an input dynamic ({min(new, key=str)[1]}). Its kernels "
            "then depend on the first shapes in each process. Pass torch.compile(..., dynamic=False)."
        )


def _find_dynamic_shapes() -> dict[Any, str]:
    """Returns the inputs that ``torch.compile`` has made dynamic in this process because their shape or value changed.

    Their kernels depend on the shapes that came first in the process. Empty with ``dynamic=False``.
    """
    pgo = sys.modules.get("torch._dynamo.pgo")  # torch imports it for the first compiled function
    if pgo is None:
        return {}
    return {
        (code, name): entry.render()
        for code, state in (pgo._CODE_STATE or {}).items()  # noqa: SLF001 (torch has no public name)
        for name, entry in state.automatic_dynamic.items()
        if not isinstance(entry.scalar, int | float)
        and pgo.auto_dynamic in (entry.size if isinstance(entry.size, tuple) else (entry.size,))
    }

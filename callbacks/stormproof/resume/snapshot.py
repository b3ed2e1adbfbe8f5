"""Captures the state that Lightning's own checkpoint lacks, and restores it at the same place between two batches.

At that place, all work of the previous batch is done, including a validation and the end of the epoch, and no work of
the next batch has begun. The restored state overwrites all changes that Lightning makes between the start of the
process and that place.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.utils._pytree import tree_leaves

from stormproof.data import rng
from stormproof.distributed import ddp_buckets
from stormproof.distributed.collectives import gather
from stormproof.errors import NotResumableError
from stormproof.lightning import internals, logged_metrics
from stormproof.lightning.layout import Layout
from stormproof.lightning.sharded_averaging import ShardedAverage
from stormproof.resumable_loader import ResumableLoader
from stormproof.resume import (
    extra_tensors,
    frozen_modules,
    metric_state,
    model_state,
    owned_state,
    rank_entries,
    swa_state,
    world_size_change,
)
from stormproof.resume.snapshot_state import CHECKPOINT_KEY, FORMAT, JobState, RankState, Snapshot

KEY = CHECKPOINT_KEY


@dataclass(frozen=True)
class RankSnapshot:
    """State that one rank restores from a checkpoint between two batches.

    Attributes:
        snapshot: State of the job that saved the checkpoint.
        rank_state: State of this rank.
        layout: Layout of this job.
        optimizer_dtypes: Optimizer states that Lightning may convert. Empty for sharded parameters.
    """

    snapshot: Snapshot
    rank_state: RankState
    layout: Layout
    optimizer_dtypes: Sequence[model_state.StateDtypes]

    @property
    def has_same_ranks(self) -> bool:
        """True if the checkpoint was saved with the world size and the tensor-parallel size of this job."""
        return self.snapshot.has_ranks_of(self.layout)


def capture(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    layout: Layout,
    *,
    has_validated: bool,
    has_ended: bool,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns a Lightning checkpoint with the missing state under the key ``stormproof``. All ranks call it together.

    Only the checkpoint on rank 0 is complete.

    Args:
        trainer: Trainer between two batches or at the end of training.
        module: Module that it trains.
        layout: Layout of the trainer.
        has_validated: Whether the validation loaders have been iterated in this run.
        has_ended: Whether training has ended.
        settings: Settings of the script.

    Raises:
        NotResumableError: If Lightning would not load the checkpoint.
    """
    checkpoint, is_rank_zero = model_state.dump_checkpoint(trainer, module, layout), layout.rank == 0
    entries, unsaved_names = (
        ([], []) if layout.is_sharded else rank_entries.capture_entries(checkpoint, module, is_rank_zero=is_rank_zero)
    )
    parameters = (
        {}
        if layout.is_sharded
        else extra_tensors.capture_unsaved_parameters(trainer.optimizers, checkpoint, is_rank_zero=is_rank_zero)
    )
    rank_state = RankState(
        rng=rng.capture(),
        generators=owned_state.capture_generators(trainer, train_loaders(trainer)),
        metrics=metric_state.capture(module, owned_state.find_modules(trainer)),
        frozen=frozen_modules.capture(module),
        train_loaders=[_capture_loader_state(trainer, loader, has_ended) for loader in train_loaders(trainer)],
        val_loaders=[_capture_next_epoch_state(loader) for loader in val_loaders(trainer)],
        logged=logged_metrics.capture_logged(trainer),
        buffers=extra_tensors.capture_buffers(module, checkpoint["state_dict"], is_rank_zero=is_rank_zero),
        averaged_buffers=[
            extra_tensors.capture_buffers(averaged_model, _saved_names(averaged_model), is_rank_zero=is_rank_zero)
            for averaged_model in internals.averaged_models(trainer)
        ],
        gradients=extra_tensors.capture_gradients(module, is_rank_zero=is_rank_zero),
        callbacks=None if is_rank_zero else checkpoint["callbacks"],
        parameters=parameters,
        entries=entries,
        validated=has_validated,
    )
    gathered_states = gather((rank_state, unsaved_names)) or []
    rank_entries.warn_about_unsaved([names for _, names in gathered_states])
    _warn_about_differing_hyperparameters(trainer)
    shared_state = JobState(
        loops=None if has_ended else internals.capture_loops(trainer),
        should_stop=trainer.should_stop,
        accumulated=trainer.accumulate_grad_batches,
        unstepped_optimizers=model_state.find_unstepped_optimizers(trainer),
        is_sharded=layout.is_sharded,
        tensor_parallel_size=layout.tensor_parallel_size,
        averaging=swa_state.capture(trainer),
        syncs_buffers=ddp_buckets.syncs_buffers(trainer.strategy.model),
        reduction_order=ddp_buckets.capture_order(trainer.strategy.model),
        settings=settings,
        tuned=internals.capture_tuned(trainer),
    )
    checkpoint[KEY] = Snapshot(secrets.token_hex(8), shared_state, [state for state, _ in gathered_states]).to_dict()
    if not has_ended:
        internals.adjust_progress(checkpoint)
    # without this package no loader is resumable, and Lightning refuses a state for a loader that is not stateful
    has_resumable_loader = any(isinstance(loader, ResumableLoader) for loader in train_loaders(trainer))
    internals.set_loader_states(checkpoint, [] if has_resumable_loader else _collect_loader_states(rank_state))
    return checkpoint


def select_rank(
    checkpoint: dict[str, Any], layout: Layout, accumulate_grad_batches: int = 1, *, collects_dtypes: bool = False
) -> RankSnapshot:
    """Returns the state of one rank, and replaces rank 0's callback and loader states in the checkpoint with its own.

    Args:
        checkpoint: Loaded checkpoint. Modified in place.
        layout: Layout of this job. States are redistributed if another number of ranks saved the checkpoint.
        accumulate_grad_batches: Batches per optimizer step on each rank. Must be at least 1.
        collects_dtypes: Whether to collect the dtypes of optimizer states. Requires ``checkpoint["state_dict"]``, which
            sharded strategies remove.

    Raises:
        NotResumableError: If a later release saved the checkpoint, or an earlier one with fewer entries.
    """
    if checkpoint[KEY]["format"] > FORMAT:
        raise NotResumableError(
            f"The checkpoint of step {checkpoint['global_step']} was saved by a later release of stormproof. Update "
            "stormproof."
        )
    try:
        snapshot = Snapshot.from_dict(checkpoint[KEY])
    except KeyError as error:
        raise NotResumableError(
            f"The checkpoint of step {checkpoint['global_step']} was saved by an earlier release of stormproof, which "
            f"did not save {error}. Resume with that release, or begin a new run in another folder."
        ) from error
    if snapshot.has_ranks_of(layout):
        rank_state = snapshot.rank_states[layout.rank]
    else:
        rank_state = world_size_change.redistribute(snapshot, checkpoint, layout, accumulate_grad_batches)
    internals.set_loader_states(checkpoint, _collect_loader_states(rank_state))
    if rank_state.callbacks is not None:
        checkpoint["callbacks"] = rank_state.callbacks
    parameters = snapshot.rank_states[0].parameters
    dtypes = model_state.collect_state_dtypes(checkpoint, parameters) if collects_dtypes else []
    return RankSnapshot(snapshot, rank_state, layout, dtypes)


def restore_entries(checkpoint: dict[str, Any], layout: Layout) -> None:
    """Replaces rank 0's entries in the checkpoint with those of this rank, before any hook reads the checkpoint."""
    rank_states = checkpoint.get(KEY, {}).get("ranks", [])
    saved_size = checkpoint.get(KEY, {}).get("shared", {}).get("tensor_parallel_size", 1)
    if (len(rank_states), saved_size) == (layout.world_size, layout.tensor_parallel_size):
        rank_entries.restore_entries(checkpoint, rank_states[layout.rank].get("entries", []))


def check_layout(trainer: pl.Trainer, rank_snapshot: RankSnapshot) -> None:
    """Warns about a change of the world size or of the sharding. Call it before the first batch.

    Raises:
        NotResumableError: If the number of samples per step changes in the middle of an epoch.
    """
    snapshot, job_state, layout = rank_snapshot.snapshot, rank_snapshot.snapshot.job_state, rank_snapshot.layout
    if job_state.is_sharded != layout.is_sharded:
        words = ("with", "without") if job_state.is_sharded else ("without", "with")
        rank_zero_warn(
            f"The checkpoint was saved {words[0]} sharded parameters, and this run trains {words[1]} them. The resume "
            "is not exact. Parameters and optimizer states are restored. Gradients that were not zeroed before the "
            "checkpoint are lost."
        )
    if rank_snapshot.has_same_ranks:
        return
    layouts = [
        f"world size {ranks}" if size == 1 else f"world size {ranks} (tensor-parallel groups of {size})"
        for ranks, size in (
            (len(snapshot.rank_states), job_state.tensor_parallel_size),
            (layout.world_size, layout.tensor_parallel_size),
        )
    ]
    change = (
        f"The checkpoint was saved with {layouts[0]} and this job has {layouts[1]}, so that this resume is not exact."
    )
    if len(snapshot.data_rank_states) == layout.data_parallel_size:
        rank_zero_warn(
            f"{change} The order of the data and the random numbers are the same, but sums are rounded differently. "
            "Means of the interrupted epoch may count only the remaining batches."
        )
        return
    assert job_state.accumulated is not None  # otherwise redistribute raised an error
    accumulate_grad_batches = (job_state.accumulated, trainer.accumulate_grad_batches)
    states, loaders = rank_snapshot.rank_state.train_loaders, train_loaders(trainer)
    world_size_change.check_global_batch(states, loaders, accumulate_grad_batches, layout.data_parallel_size)
    rank_zero_warn(
        f"{change} Each sample still occurs once per epoch, in the same steps. Random numbers are seeded anew, and "
        "means of the interrupted epoch may count only the remaining batches."
    )


def restore(trainer: pl.Trainer, module: pl.LightningModule, rank_snapshot: RankSnapshot) -> None:
    """Restores the state between two batches. Lightning has already restored the training loaders."""
    shared_state, rank_state = rank_snapshot.snapshot.job_state, rank_snapshot.rank_state
    if rank_state.validated:
        _restart_validation_workers(trainer)
    for loader, state in zip(val_loaders(trainer), rank_state.val_loaders, strict=False):
        if isinstance(loader, ResumableLoader) and state is not None:
            loader.load_state_dict(state)
    if shared_state.loops is not None:
        internals.restore_loops(trainer, shared_state.loops)
        logged_metrics.restore_logged(trainer, rank_state.logged)
        _reapply_accumulation_schedule(trainer)
        swa_state.restore(trainer, module, shared_state.averaging)
    model_state.clear_optimizer_states(trainer, shared_state.unstepped_optimizers)
    for optimizer, dtypes in zip(trainer.optimizers, rank_snapshot.optimizer_dtypes, strict=False):
        dtypes.restore(optimizer)
    if rank_snapshot.has_same_ranks:
        ddp_buckets.restore_order(trainer.strategy.model, shared_state.reduction_order)
        ddp_buckets.restore_buffer_sync(trainer.strategy.model, shared_state.syncs_buffers)
    restore_final(trainer, module, rank_snapshot)


def restore_final(trainer: pl.Trainer, module: pl.LightningModule, rank_snapshot: RankSnapshot) -> None:
    """Restores the part of the state that remains after training has ended."""
    data_rank_states, rank_state = rank_snapshot.snapshot.data_rank_states, rank_snapshot.rank_state
    layout = rank_snapshot.layout
    logged_metrics.restore_metrics(trainer, rank_state.logged)
    metrics, extra_modules = rank_state.metrics, owned_state.find_modules(trainer)
    if len(data_rank_states) != layout.data_parallel_size:
        saved_metrics = [state.metrics for state in data_rank_states]
        metrics = metric_state.merge(module, saved_metrics, layout.data_rank == 0, extra_modules)
    metric_state.restore(module, metrics, extra_modules)
    frozen_modules.restore(module, rank_state.frozen)
    restore_tensors(trainer, module, rank_snapshot)
    trainer.should_stop = rank_snapshot.snapshot.job_state.should_stop
    owned_state.restore_generators(trainer, train_loaders(trainer), rank_state.generators)
    rng.restore(rank_state.rng)


def restore_tensors(trainer: pl.Trainer, module: pl.LightningModule, rank_snapshot: RankSnapshot) -> None:
    """Restores buffers, parameters outside the ``state_dict``, and gradients.

    A rank stores only tensors that differ from rank 0's.
    """
    rank_zero_state, rank_state = rank_snapshot.snapshot.rank_states[0], rank_snapshot.rank_state
    extra_tensors.restore_buffers(module, {**rank_zero_state.buffers, **rank_state.buffers})
    averaged_models = internals.averaged_models(trainer)
    buffer_pairs = zip(rank_zero_state.averaged_buffers, rank_state.averaged_buffers, strict=True)
    for averaged_model, (rank_zero_buffers, rank_buffers) in zip(
        averaged_models, buffer_pairs, strict=False
    ):  # an earlier release saved none
        extra_tensors.restore_buffers(averaged_model, {**rank_zero_buffers, **rank_buffers})
    is_sharded = rank_snapshot.layout.is_sharded
    if is_sharded != rank_snapshot.snapshot.job_state.is_sharded:
        return
    extra_tensors.restore_unsaved_parameters(
        trainer.optimizers, {**rank_zero_state.parameters, **rank_state.parameters}
    )
    if not is_sharded or rank_snapshot.has_same_ranks:
        extra_tensors.restore_gradients(module, {**rank_zero_state.gradients, **rank_state.gradients})


def _warn_about_differing_hyperparameters(trainer: pl.Trainer) -> None:
    """Warns if optimizer hyperparameters differ among ranks, because only rank 0's are saved."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    hyperparameters = [
        {key: value for key, value in group.items() if isinstance(value, int | float)} for group in groups
    ]
    hyperparameters_by_rank = gather(hyperparameters) or [hyperparameters]
    differing_ranks = [
        rank
        for rank, rank_hyperparameters in enumerate(hyperparameters_by_rank)
        if rank_hyperparameters != hyperparameters
    ]
    if differing_ranks:
        rank_zero_warn(
            f"Optimizer hyperparameters of rank {differing_ranks[0]} (such as the learning rate) differ from rank "
            "0's. A resume will not be exact. If a schedule monitors a metric, log it with self.log(..., "
            "sync_dist=True)."
        )


def _capture_loader_state(trainer: pl.Trainer, loader: Any, has_ended: bool) -> Any:
    """Returns the state of a loader. None if it is not stateful."""
    if isinstance(loader, ResumableLoader):
        if has_ended:
            return loader.next_epoch_state()
        return loader.state_dict(internals.count_prefetched_batches(trainer), requested_only=True)
    return loader.state_dict() if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") else None


def _capture_next_epoch_state(loader: Any) -> Any:
    return loader.next_epoch_state() if isinstance(loader, ResumableLoader) else None


def _collect_loader_states(rank_state: RankState) -> list[Any]:
    return [state for state in rank_state.train_loaders if state is not None]


def train_loaders(trainer: pl.Trainer) -> list[Any]:
    """Returns the training loaders, in Lightning's order."""
    return tree_leaves(trainer.train_dataloader)


def val_loaders(trainer: pl.Trainer) -> list[Any]:
    """Returns the validation loaders. Empty before Lightning has requested them."""
    return [] if trainer.val_dataloaders is None else tree_leaves(trainer.val_dataloaders)


def _saved_names(averaged_model: nn.Module) -> Collection[str]:
    if isinstance(averaged_model, ShardedAverage):
        return averaged_model.saved_names()
    return averaged_model.state_dict()


def _reapply_accumulation_schedule(trainer: pl.Trainer) -> None:
    """Applies GradientAccumulationScheduler, which otherwise does so only when an epoch begins."""
    for callback in internals.callbacks(trainer):
        get_factor = getattr(callback, "get_accumulate_grad_batches", None)
        if get_factor is not None:
            trainer.accumulate_grad_batches = get_factor(trainer.current_epoch)


def _restart_validation_workers(trainer: pl.Trainer) -> None:
    """Starts persistent workers of the validation loaders, which the interrupted run had already started.

    A loader draws the seed of its workers when they start. If they started later than in an uninterrupted run, the draw
    would change the random numbers of training.
    """
    internals.prepare_validation(trainer)
    for loader in val_loaders(trainer):
        if isinstance(loader, torch.utils.data.DataLoader) and loader.persistent_workers:
            iter(loader)

"""What a resume needs beyond Lightning's own checkpoint: taken and set back at one and the same place in the program.

That place is between two batches: all that the one before brought about is done, validation and epoch end included, and
nothing of the next has begun. A state set back exactly there needs no account of what Lightning does until then when it
resumes: whatever that was, it is overwritten.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils._pytree import tree_leaves

from stormproof.data import rng
from stormproof.distributed import ddp_buckets
from stormproof.distributed.collectives import gather
from stormproof.errors import NotResumableError
from stormproof.lightning import internals, logged_metrics
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
from stormproof.resume.snapshot_state import FORMAT, JobState, RankState, Snapshot

KEY = "stormproof"


@dataclass(frozen=True)
class OwnPart:
    """What a rank restores from a checkpoint between two batches.

    Attributes:
        snapshot: State of the job that saved the checkpoint.
        own: State of this rank.
        dtypes: Optimizer states that Lightning may convert. Empty for sharded parameters.
    """

    snapshot: Snapshot
    own: RankState
    dtypes: Sequence[model_state.StateDtypes]


def take(trainer: pl.Trainer, module: pl.LightningModule, *, validated: bool, ended: bool) -> dict[str, Any]:
    """A Lightning checkpoint with all that it lacks, under one more key; complete on rank 0. All ranks call it.

    Args:
        trainer: between two batches, or at the end of the training.
        module: what it trains.
        validated: whether the validation loaders have been iterated in this run.
        ended: whether the training is over.

    Raises:
        NotResumableError: if Lightning would not load it again.
    """
    checkpoint, first = model_state.dump_checkpoint(trainer, module), trainer.global_rank == 0
    spread = internals.gathers_checkpoints(trainer)
    entries, unsaved = ([], []) if spread else rank_entries.capture_entries(checkpoint, module, first=first)
    parameters = {} if spread else extra_tensors.capture_unsaved_parameters(trainer.optimizers, checkpoint, first=first)
    own = RankState(
        rng=rng.capture(),
        generators=owned_state.capture_generators(trainer, train_loaders(trainer)),
        metrics=metric_state.capture(module, owned_state.find_modules(trainer)),
        frozen=frozen_modules.capture(module),
        train_loaders=[_position(trainer, loader, ended) for loader in train_loaders(trainer)],
        val_loaders=[_next_pass(loader) for loader in val_loaders(trainer)],
        logged=logged_metrics.logged_state(trainer),
        buffers=extra_tensors.capture_buffers(module, checkpoint["state_dict"], first=first),
        averaged_buffers=[
            extra_tensors.capture_buffers(average, average.state_dict(), first=first)
            for average in internals.averaged_models(trainer)
        ],
        gradients=extra_tensors.capture_gradients(module, first=first),
        callbacks=checkpoint["callbacks"] if trainer.global_rank else None,
        parameters=parameters,
        entries=entries,
        validated=validated,
    )
    gathered = gather((own, unsaved)) or []
    rank_entries.warn_about_unsaved([names for _, names in gathered])
    _warn_about_differing_hyperparameters(trainer)
    shared = JobState(
        loops=None if ended else internals.loops_state(trainer),
        should_stop=trainer.should_stop,
        accumulated=trainer.accumulate_grad_batches,
        untouched=model_state.without_a_step(trainer),
        spread=spread,
        averaging=swa_state.capture(trainer),
        syncs_buffers=ddp_buckets.syncs_buffers(trainer.strategy.model),
        reduction_order=ddp_buckets.capture_order(trainer.strategy.model),
    )
    checkpoint[KEY] = Snapshot(secrets.token_hex(8), shared, [state for state, _ in gathered]).to_dict()
    if not ended:
        internals.give_progress(checkpoint)
    # Lightning refuses a state for a loader that has none, and a resumable one is not there without this package
    ours = any(isinstance(loader, ResumableLoader) for loader in train_loaders(trainer))
    internals.give_loaders(checkpoint, [] if ours else _stateful(own))
    return checkpoint


def own_part(checkpoint: dict[str, Any], rank: int, ranks: int, accumulated: int = 1) -> OwnPart:
    """What of a checkpoint is set back between two batches; this rank's states take the place of rank 0's in it.

    Args:
        checkpoint: as it was loaded.
        rank: of this process.
        ranks: of this job; of another number than it was saved by, the states are shared out anew.
        accumulated: batches of a step on each rank.

    Raises:
        NotResumableError: if it was saved by a later release.
    """
    if checkpoint[KEY]["format"] > FORMAT:
        raise NotResumableError(
            f"the checkpoint at step {checkpoint['global_step']} was saved by a later release of stormproof: update it"
        )
    saved = Snapshot.from_dict(checkpoint[KEY])
    if len(saved.ranks) == ranks:
        own = saved.ranks[rank]
    else:
        own = world_size_change.share_out(saved, checkpoint, rank, ranks, accumulated)
    internals.give_loaders(checkpoint, _stateful(own))
    if own.callbacks is not None:
        checkpoint["callbacks"] = own.callbacks
    dtypes = [] if saved.shared.spread else model_state.state_dtypes(checkpoint, saved.ranks[0].parameters)
    return OwnPart(saved, own, dtypes)


def restore_entries(checkpoint: dict[str, Any], rank: int, ranks: int) -> None:
    """Puts this rank's entries in the place of rank 0's, before any hook reads the checkpoint."""
    saved = checkpoint.get(KEY, {}).get("ranks", [])
    if len(saved) == ranks:
        rank_entries.restore_entries(checkpoint, saved[rank].get("entries", []))


def check_ranks(trainer: pl.Trainer, part: OwnPart) -> None:
    """Says what another number of ranks than the one that saved means for the resume, before the first batch.

    Raises:
        NotResumableError: if a step had another number of samples, and it is in the middle of an epoch; or if
            parameters were spread over the ranks and are no longer, or the other way round.
    """
    spread, shared, ranks = internals.gathers_checkpoints(trainer), part.snapshot.shared, len(part.snapshot.ranks)
    if shared.spread != spread:
        raise NotResumableError(
            "the checkpoint is of a training whose parameters were "
            f"{'whole on each rank' if spread else 'spread over the ranks'}, which numbers the optimizer's states "
            "otherwise: go on with the same strategy"
        )
    if ranks == trainer.world_size:
        return
    assert shared.accumulated is not None  # otherwise share_out raised an error
    accumulated = (shared.accumulated, trainer.accumulate_grad_batches)
    world_size_change.check_global_batch(
        part.own.train_loaders, train_loaders(trainer), accumulated, trainer.world_size
    )
    rank_zero_warn(
        f"saved by {ranks} ranks, and this job has {trainer.world_size}: each sample still comes once an "
        "epoch, in the same steps; random numbers are drawn anew, and means of the epoch that was interrupted may "
        "count only what follows, so that this resume is not exact"
    )


def restore(trainer: pl.Trainer, module: pl.LightningModule, part: OwnPart) -> None:
    """Sets it back, between two batches; the training loaders had theirs from Lightning before it iterated them."""
    shared, own = part.snapshot.shared, part.own
    if own.validated:
        _meet_validation_again(trainer)
    for loader, state in zip(val_loaders(trainer), own.val_loaders, strict=False):
        if isinstance(loader, ResumableLoader) and state is not None:
            loader.load_state_dict(state)
    if shared.loops is not None:
        internals.restore_loops(trainer, shared.loops)
        logged_metrics.restore_logged(trainer, own.logged)
        _schedule_accumulation_again(trainer)
        swa_state.restore(trainer, module, shared.averaging)
    model_state.forget_steps(trainer, shared.untouched)
    for optimizer, types in zip(trainer.optimizers, part.dtypes, strict=False):
        types.restore(optimizer)
    if len(part.snapshot.ranks) == trainer.world_size:
        ddp_buckets.restore_order(trainer.strategy.model, shared.reduction_order)
        ddp_buckets.restore_sync(trainer.strategy.model, shared.syncs_buffers)
    restore_outcome(trainer, module, part)


def restore_outcome(trainer: pl.Trainer, module: pl.LightningModule, part: OwnPart) -> None:
    """Sets back what remains of a training once it has ended: then no batch is left to set the rest back before."""
    ranks, own = part.snapshot.ranks, part.own
    logged_metrics.restore_metrics(trainer, own.logged)
    metrics, others = own.metrics, owned_state.find_modules(trainer)
    if len(ranks) != trainer.world_size:
        metrics = metric_state.merged(module, [rank.metrics for rank in ranks], trainer.is_global_zero, others)
    metric_state.restore(module, metrics, others)
    frozen_modules.restore(module, own.frozen)
    restore_tensors(trainer, module, part)
    trainer.should_stop = part.snapshot.shared.should_stop
    owned_state.restore_generators(trainer, train_loaders(trainer), own.generators)
    rng.restore(own.rng)


def restore_tensors(trainer: pl.Trainer, module: pl.LightningModule, part: OwnPart) -> None:
    """Restores buffers, parameters outside the ``state_dict``, and gradients.

    A rank stores only tensors that differ from rank 0's.
    """
    first, own = part.snapshot.ranks[0], part.own
    extra_tensors.restore_buffers(module, {**first.buffers, **own.buffers})
    averages = internals.averaged_models(trainer)
    both = zip(first.averaged_buffers, own.averaged_buffers, strict=True)
    for average, (of_first, of_own) in zip(averages, both, strict=False):  # an earlier release saved none
        extra_tensors.restore_buffers(average, {**of_first, **of_own})
    extra_tensors.restore_unsaved_parameters(trainer.optimizers, {**first.parameters, **own.parameters})
    extra_tensors.restore_gradients(module, {**first.gradients, **own.gradients})


def _warn_about_differing_hyperparameters(trainer: pl.Trainer) -> None:
    """Warns if optimizer hyperparameters differ among ranks, because only rank 0's are saved."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    numbers = [{key: value for key, value in group.items() if isinstance(value, int | float)} for group in groups]
    by_rank = gather(numbers) or [numbers]
    differing = [rank for rank, of_rank in enumerate(by_rank) if of_rank != numbers]
    if differing:
        rank_zero_warn(
            f"Optimizer hyperparameters of rank {differing[0]} (such as the learning rate) differ from rank 0's. A "
            "resume will not be exact. If a schedule monitors a metric, log it with self.log(..., sync_dist=True)"
        )


def _position(trainer: pl.Trainer, loader: Any, ended: bool) -> Any:
    """Where a loader is; of one that is stateful and not ours, what it says; None of a plain one."""
    if isinstance(loader, ResumableLoader):
        if ended:
            return loader.next_pass_state()
        return loader.state_dict(internals.batches_ahead(trainer), asked_only=True)
    return loader.state_dict() if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") else None


def _next_pass(loader: Any) -> Any:
    return loader.next_pass_state() if isinstance(loader, ResumableLoader) else None


def _stateful(own: RankState) -> list[Any]:
    return [state for state in own.train_loaders if state is not None]


def train_loaders(trainer: pl.Trainer) -> list[Any]:
    """The loaders that training draws from, in Lightning's order."""
    return tree_leaves(trainer.train_dataloader)


def val_loaders(trainer: pl.Trainer) -> list[Any]:
    """The loaders that validation draws from; empty before Lightning has asked for them."""
    return [] if trainer.val_dataloaders is None else tree_leaves(trainer.val_dataloaders)


def _schedule_accumulation_again(trainer: pl.Trainer) -> None:
    """Has GradientAccumulationScheduler set the trainer once more: by itself it does when an epoch begins."""
    for callback in internals.callbacks(trainer):
        factor = getattr(callback, "get_accumulate_grad_batches", None)
        if factor is not None:
            trainer.accumulate_grad_batches = factor(trainer.current_epoch)


def _meet_validation_again(trainer: pl.Trainer) -> None:
    """Brings the validation loaders to where they were: workers that persist had been started already.

    A loader draws the seed of its workers when they start, and from then on no more. Started later than in the run that
    was never killed, they would take a number that training is to get.
    """
    internals.prepare_validation(trainer)
    for loader in val_loaders(trainer):
        if isinstance(loader, torch.utils.data.DataLoader) and loader.persistent_workers:
            iter(loader)

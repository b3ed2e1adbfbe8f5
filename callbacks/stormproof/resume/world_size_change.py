"""What a job of another number of ranks saved, shared out among those that go on with it.

Weights, optimizers, schedules and counts of steps are the whole job's and stay. The place in the data is that many
samples into the epoch's order, which depends on no number of ranks. What each rank had for itself is put together
(sums and means of the epoch, metrics) or begins anew (random numbers): the training goes on, and not bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from stormproof.data import rng
from stormproof.errors import NotResumableError
from stormproof.lightning import internals
from stormproof.resume.snapshot_state import RankState, Snapshot


def redistribute(
    saved: Snapshot, checkpoint: Mapping[str, Any], rank: int, world_size: int, accumulate_grad_batches: int
) -> RankState:
    """Returns the state of one rank after a change of the world size. Rescales batch counts in ``checkpoint``.

    Args:
        saved: state of the job that saved the checkpoint.
        checkpoint: as it was loaded, of CheckpointRecovery.
        rank: of this process.
        world_size: of this job.
        accumulate_grad_batches: batches of a step on each of them.

    Raises:
        NotResumableError: if it was saved by a release that did not write down how many batches a step had.
    """
    rank_states, shared_state = saved.rank_states, saved.job_state
    if shared_state.accumulated is None:
        raise NotResumableError(
            f"the checkpoint at step {checkpoint['global_step']} was saved by a job of {len(rank_states)} ranks and an "
            "earlier release of stormproof: start it with as many"
        )
    factor = Fraction(accumulate_grad_batches, shared_state.accumulated)
    internals.rescale_batch_counts(checkpoint["loops"]["fit_loop"], factor)
    if shared_state.loops is not None:
        internals.rescale_batch_counts(shared_state.loops["progress"], factor)
    rank_state = rank_states[min(rank, len(rank_states) - 1)]
    results = [state.logged["results"] for state in rank_states]
    # one rank alone does not know which values are to be reduced, and Lightning refuses them to be logged otherwise
    is_reduction_known = len(rank_states) > 1 and world_size > 1
    logged = {**rank_state.logged, "results": merge_logged_results(results, rank) if is_reduction_known else {}}
    return replace(
        rank_states[0],
        rng=_reseed_generators(rank_states[0].rng, rank),
        logged=logged,
        buffers=rank_state.buffers,
        averaged_buffers=rank_state.averaged_buffers,
        gradients=rank_state.gradients,
        generators=rank_states[rank].generators if rank < len(rank_states) else {},
        callbacks=rank_state.callbacks,
    )


def merge_logged_results(results: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """Values that ``self.log`` was adding up, by key: those to be reduced over the ranks put together, on rank 0.

    Args:
        results: of each rank that saved them.
        rank: of this process.
    """
    merged_results: dict[str, Any] = {}
    for key, rank_result in results[min(rank, len(results) - 1)].items():
        state = merged_results[key] = dict(rank_result)
        if "value" not in state or not state["sync"]["should"]:
            continue
        key_results = [result[key] for result in results if key in result]
        reduction = state["reduce"].rpartition(".")[2]
        for name in ("value", "cumulated_batch_size"):
            values = [result[name] for result in key_results]
            if values[0] is None:
                continue
            if reduction in {"max", "min"}:
                state[name] = max(values) if reduction == "max" else min(values)
            else:
                state[name] = sum(values[1:], values[0]) if rank == 0 else 0 * values[0]
    return merged_results


def check_global_batch(
    saved_states: Sequence[Any], loaders: Sequence[Any], accumulate_grad_batches: tuple[int, int], world_size: int
) -> None:
    """Refuses to go on in the middle of an epoch with steps of another number of samples.

    Args:
        saved_states: the saved states of the training loaders.
        loaders: the training loaders.
        accumulate_grad_batches: batches of a step on each rank, then and now.
        world_size: of this job.

    Raises:
        NotResumableError: if a step had another number of samples.
    """
    for state, loader in zip(saved_states, loaders, strict=False):
        if not isinstance(state, dict) or "fits" not in state or not state["batches"] or state["whole"]:
            continue
        batch_sizes = (state["fits"]["batch_size"] or 1, loader.batch_size or 1)
        saved_factors = (state["world_size"], accumulate_grad_batches[0], batch_sizes[0])
        current_factors = (world_size, accumulate_grad_batches[1], batch_sizes[1])
        if (
            saved_factors[0] * saved_factors[1] * saved_factors[2]
            != current_factors[0] * current_factors[1] * current_factors[2]
        ):
            raise NotResumableError(
                f"the checkpoint is of a job whose steps took {_format_product(saved_factors)} samples, in the middle "
                f"of an epoch, and "
                f"those of this job take {_format_product(current_factors)} (ranks x accumulated batches x batch "
                f"size): choose "
                "accumulate_grad_batches and the batch size so that they are as many"
            )


def _format_product(factors: tuple[int, int, int]) -> str:
    return " x ".join(map(str, factors))


def _reseed_generators(saved_state: rng.State, rank: int) -> rng.State:
    """Generators that nobody has used, by where rank 0's were, so that no two runs share them; not those of GPUs."""
    with rng.ForkedRng():
        rng.restore({"torch": saved_state["torch"]})
        rng.seed_process(torch.initial_seed(), int(torch.randint(2**62, ())), rank)
        state = rng.capture()
    state.pop("cuda", None)
    return state

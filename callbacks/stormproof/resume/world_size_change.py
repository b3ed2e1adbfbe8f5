"""Redistributes the states of a checkpoint after a change of the world size.

Weights, optimizers, schedules and step counts belong to the whole job and stay unchanged. The position in the data is a
number of samples in the order of the epoch, which does not depend on the world size. States of single ranks are merged
(epoch means and metrics) or seeded anew (random number generators). Such a resume is not exact.

All ranks of a tensor-parallel group have the same samples and states, so that only the first is used. If the number of
groups is unchanged, the states of single ranks are restored unchanged.
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
from stormproof.lightning.layout import Layout
from stormproof.resume.snapshot_state import RankState, Snapshot


def redistribute(
    saved: Snapshot, checkpoint: Mapping[str, Any], layout: Layout, accumulate_grad_batches: int
) -> RankState:
    """Returns the state of one rank after a change of the layout. Rescales batch counts in ``checkpoint``.

    Args:
        saved: State of the job that saved the checkpoint.
        checkpoint: Loaded checkpoint. Modified in place.
        layout: Layout of this job.
        accumulate_grad_batches: Batches per optimizer step on each rank. Must be at least 1.

    Raises:
        NotResumableError: If the release that saved the checkpoint did not record the batches per step.
    """
    rank_states, shared_state = saved.data_rank_states, saved.job_state
    # one rank does not record which values to reduce, and Lightning refuses to log them with other arguments
    records_reduction = (len(saved.rank_states) > 1, layout.world_size > 1)
    data_rank = layout.data_rank
    if len(rank_states) == layout.data_parallel_size:
        rank_state = rank_states[data_rank]
        is_same = records_reduction[0] == records_reduction[1]
        return rank_state if is_same else replace(rank_state, logged={**rank_state.logged, "results": {}})
    if shared_state.accumulated is None:
        raise NotResumableError(
            f"The checkpoint of step {checkpoint['global_step']} was saved with world size {len(rank_states)} by an "
            "earlier release of stormproof, which does not support another one. Resume with world size "
            f"{len(rank_states)}."
        )
    factor = Fraction(accumulate_grad_batches, shared_state.accumulated)
    internals.rescale_batch_counts(checkpoint["loops"]["fit_loop"], factor)
    if shared_state.loops is not None:
        internals.rescale_batch_counts(shared_state.loops["progress"], factor)
    rank_state = rank_states[min(data_rank, len(rank_states) - 1)]
    saved_results = [state.logged["results"] for state in rank_states]
    results = merge_logged_results(saved_results, data_rank) if all(records_reduction) else {}
    return replace(
        rank_states[0],
        rng=_reseed_generators(rank_states[0].rng, data_rank),
        logged={**rank_state.logged, "results": results},
        buffers=rank_state.buffers,
        averaged_buffers=rank_state.averaged_buffers,
        gradients=rank_state.gradients,
        generators=rank_states[data_rank].generators if data_rank < len(rank_states) else {},
        callbacks=rank_state.callbacks,
    )


def merge_logged_results(results: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """Returns the accumulated values of ``self.log`` by key. Values with ``sync_dist`` are merged on rank 0.

    Args:
        results: Saved values of each rank.
        rank: Rank of this process.
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
    """Refuses to resume in the middle of an epoch if the number of samples per step changes.

    Args:
        saved_states: Saved states of the training loaders.
        loaders: Training loaders.
        accumulate_grad_batches: Batches per optimizer step on each rank, in the saved run and in this one.
        world_size: Number of data-parallel ranks of this job.

    Raises:
        NotResumableError: If the number of samples per step changes.
    """
    for state, loader in zip(saved_states, loaders, strict=False):
        if (
            not isinstance(state, dict)
            or "data_description" not in state
            or not state["batches"]
            or state["is_complete"]
        ):
            continue
        batch_sizes = (state["data_description"]["batch_size"] or 1, loader.batch_size or 1)
        saved_factors = (state["world_size"], accumulate_grad_batches[0], batch_sizes[0])
        current_factors = (world_size, accumulate_grad_batches[1], batch_sizes[1])
        if (
            saved_factors[0] * saved_factors[1] * saved_factors[2]
            != current_factors[0] * current_factors[1] * current_factors[2]
        ):
            raise NotResumableError(
                f"The checkpoint was saved in the middle of an epoch with {_format_product(saved_factors)} samples per "
                f"step, but this job has {_format_product(current_factors)} (data-parallel ranks x accumulated "
                "batches x batch size). Choose accumulate_grad_batches and the batch size so that both are equal."
            )


def _format_product(factors: tuple[int, int, int]) -> str:
    return " x ".join(map(str, factors))


def _reseed_generators(saved_state: rng.State, rank: int) -> rng.State:
    """Returns new generator states, seeded from rank 0's state and the rank. Excludes the generators of GPUs."""
    with rng.ForkedRng():
        rng.restore({"torch": saved_state["torch"]})
        rng.seed_process(torch.initial_seed(), int(torch.randint(2**62, ())), rank)
        state = rng.capture()
    state.pop("cuda", None)
    return state

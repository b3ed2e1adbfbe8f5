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


def share_out(saved: Snapshot, checkpoint: Mapping[str, Any], rank: int, ranks: int, accumulated: int) -> RankState:
    """The part of one of this job's ranks; changes the checkpoint's counts of batches to those that it would have.

    Args:
        saved: state of the job that saved the checkpoint.
        checkpoint: as it was loaded, of CheckpointRecovery.
        rank: of this process.
        ranks: of this job.
        accumulated: batches of a step on each of them.

    Raises:
        NotResumableError: if it was saved by a release that did not write down how many batches a step had.
    """
    states, shared = saved.ranks, saved.shared
    if shared.accumulated is None:
        raise NotResumableError(
            f"the checkpoint at step {checkpoint['global_step']} was saved by a job of {len(states)} ranks and an "
            "earlier release of stormproof: start it with as many"
        )
    factor = Fraction(accumulated, shared.accumulated)
    internals.rescale_batches(checkpoint["loops"]["fit_loop"], factor)
    if shared.loops is not None:
        internals.rescale_batches(shared.loops["progress"], factor)
    one = states[min(rank, len(states) - 1)]
    results = [state.logged["results"] for state in states]
    # one rank alone does not know which values are to be reduced, and Lightning refuses them to be logged otherwise
    known = len(states) > 1 and ranks > 1
    logged = {**one.logged, "results": logged_together(results, rank) if known else {}}
    return replace(
        states[0],
        rng=_drawn_anew(states[0].rng, rank),
        logged=logged,
        buffers=one.buffers,
        averaged_buffers=one.averaged_buffers,
        gradients=one.gradients,
        generators=states[rank].generators if rank < len(states) else {},
        callbacks=one.callbacks,
    )


def logged_together(results: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """Values that ``self.log`` was adding up, by key: those to be reduced over the ranks put together, on rank 0.

    Args:
        results: of each rank that saved them.
        rank: of this process.
    """
    shared: dict[str, Any] = {}
    for key, own in results[min(rank, len(results) - 1)].items():
        state = shared[key] = dict(own)
        if "value" not in state or not state["sync"]["should"]:
            continue
        each = [result[key] for result in results if key in result]
        reduce = state["reduce"].rpartition(".")[2]
        for name in ("value", "cumulated_batch_size"):
            values = [result[name] for result in each]
            if values[0] is None:
                continue
            if reduce in {"max", "min"}:
                state[name] = max(values) if reduce == "max" else min(values)
            else:
                state[name] = sum(values[1:], values[0]) if rank == 0 else 0 * values[0]
    return shared


def check_global_batch(before: Sequence[Any], now: Sequence[Any], accumulated: tuple[int, int], ranks: int) -> None:
    """Refuses to go on in the middle of an epoch with steps of another number of samples.

    Args:
        before: the saved states of the training loaders.
        now: the training loaders.
        accumulated: batches of a step on each rank, then and now.
        ranks: of this job.

    Raises:
        NotResumableError: if a step had another number of samples.
    """
    for state, loader in zip(before, now, strict=False):
        if not isinstance(state, dict) or "fits" not in state or not state["batches"] or state["whole"]:
            continue
        sizes = (state["fits"]["batch_size"] or 1, loader.batch_size or 1)
        then = (state["world_size"], accumulated[0], sizes[0])
        here = (ranks, accumulated[1], sizes[1])
        if then[0] * then[1] * then[2] != here[0] * here[1] * here[2]:
            raise NotResumableError(
                f"the checkpoint is of a job whose steps took {_product(then)} samples, in the middle of an epoch, and "
                f"those of this job take {_product(here)} (ranks x accumulated batches x batch size): choose "
                "accumulate_grad_batches and the batch size so that they are as many"
            )


def _product(numbers: tuple[int, int, int]) -> str:
    return " x ".join(map(str, numbers))


def _drawn_anew(saved: rng.State, rank: int) -> rng.State:
    """Generators that nobody has used, by where rank 0's were, so that no two runs share them; not those of GPUs."""
    with rng.Untouched():
        rng.restore({"torch": saved["torch"]})
        rng.seed(torch.initial_seed(), int(torch.randint(2**62, ())), rank)
        state = rng.capture()
    state.pop("cuda", None)
    return state

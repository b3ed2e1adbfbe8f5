"""What the ranks of a job tell each other, so that a decision is one decision. All ranks must call these together."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from stormproof.errors import RanksDisagreeError, StormproofError

T = TypeVar("T")

SYNC_EVERY_N_STEPS = 10
"""How often the ranks tell each other what they do not share anyway: a collective of its own on every step would cost
more than it tells."""


def world_size() -> int:
    """The number of ranks in the process group; 1 where there is none (yet)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def broadcast(value: T) -> T:
    """Rank 0's ``value``, on every rank.

    Args:
        value: a picklable object; what other ranks pass is ignored.

    Example:
        >>> broadcast(600)
        600
    """
    if world_size() == 1:
        return value
    objects = [value]
    dist.broadcast_object_list(objects, src=0)
    return objects[0]


def gather(value: T) -> list[T] | None:
    """Every rank's ``value`` by rank, on rank 0, with its tensors in host memory; None on the others.

    Example:
        >>> gather("state")
        ['state']
    """
    if world_size() == 1:
        return [value]
    payloads: list[Any] | None = [None] * world_size() if dist.get_rank() == 0 else None
    content = io.BytesIO()
    torch.save(value, content)  # unlike pickle, it supports tensors of every dtype, such as float8 and uint16
    dist.gather_object(content.getvalue(), payloads, dst=0)
    if payloads is None:
        return None
    return [torch.load(io.BytesIO(payload), map_location="cpu", weights_only=False) for payload in payloads]


def all_gather(value: T) -> list[T]:
    """Every rank's ``value`` by rank, on every rank.

    Example:
        >>> all_gather("folder")
        ['folder']
    """
    if world_size() == 1:
        return [value]
    gathered_values: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered_values, value)
    return gathered_values


def all_reduce_max(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of what the ranks pass, entry by entry, on every rank; much cheaper than a Python object.

    Args:
        values: this rank's, as many on each.
        device: the one that the ranks talk from: a GPU with NCCL.

    Example:
        >>> all_reduce_max([3.0, -1.0], torch.device("cpu"))
        [3.0, -1.0]
    """
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def all_gather_rows(values: torch.Tensor) -> torch.Tensor:
    """What the ranks pass, as (ranks, n), on every rank; much cheaper than Python objects.

    Args:
        values: this rank's, (n,), on the device that the ranks talk from; as many on each.

    Example:
        >>> all_gather_rows(torch.tensor([3.0, -1.0]))
        tensor([[ 3., -1.]])
    """
    if world_size() == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def run_on_rank_zero(function: Callable[[], T]) -> T:
    """What ``function`` returns on rank 0, on every rank; an error there is an error on all.

    Raises:
        StormproofError: on the other ranks, with what rank 0 raised in words.

    Example:
        >>> run_on_rank_zero(lambda: 600)
        600
    """
    if world_size() == 1:
        return function()
    if dist.get_rank() != 0:
        value, failure = broadcast(cast("Any", None))
        if failure is not None:
            message, exit_code = failure
            error = StormproofError(message)
            error.exit_code = exit_code
            raise error
        return value
    try:
        value = function()
    except Exception as error:
        broadcast((None, (f"rank 0: {error}", getattr(error, "exit_code", 1))))
        raise
    broadcast((value, None))
    return value


def assert_equal(name: str, value: str | None) -> None:
    """Stops all ranks together if they do not say the same of ``name``.

    Raises:
        RanksDisagreeError: on every rank, with what each said.

    Example:
        >>> assert_equal("the newest checkpoint", "000012-step-600")
    """
    values = all_gather(value)
    if any(gathered_value != values[0] for gathered_value in values):
        description = "; ".join(f"rank {rank}: {rank_value or 'none'}" for rank, rank_value in enumerate(values))
        raise RanksDisagreeError(f"The ranks do not agree on {name} ({description}). Restart all ranks.")

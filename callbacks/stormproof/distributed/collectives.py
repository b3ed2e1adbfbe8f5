"""What the ranks of a job tell each other, so that a decision is one decision. All ranks must call these together."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from stormproof.errors import RanksDisagreeError, StormproofError

T = TypeVar("T")

AGREEMENT_STEPS = 10
"""How often the ranks tell each other what they do not share anyway: a collective of its own on every step would cost
more than it tells."""


def world_size() -> int:
    """The number of ranks in the process group; 1 where there is none (yet)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(value: T) -> T:
    """Rank 0's ``value``, on every rank.

    Args:
        value: a picklable object; what other ranks pass is ignored.

    Example:
        >>> share(600)
        600
    """
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T] | None:
    """Every rank's ``value`` by rank, on rank 0, with its tensors in host memory; None on the others.

    Example:
        >>> gather("state")
        ['state']
    """
    if world_size() == 1:
        return [value]
    box: list[Any] | None = [None] * world_size() if dist.get_rank() == 0 else None
    content = io.BytesIO()
    torch.save(value, content)  # unlike pickle, it supports tensors of every dtype, such as float8 and uint16
    dist.gather_object(content.getvalue(), box, dst=0)
    if box is None:
        return None
    return [torch.load(io.BytesIO(received), map_location="cpu", weights_only=False) for received in box]


def everyone(value: T) -> list[T]:
    """Every rank's ``value`` by rank, on every rank.

    Example:
        >>> everyone("folder")
        ['folder']
    """
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def largest(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of what the ranks pass, entry by entry, on every rank; much cheaper than a Python object.

    Args:
        values: this rank's, as many on each.
        device: the one that the ranks talk from: a GPU with NCCL.

    Example:
        >>> largest([3.0, -1.0], torch.device("cpu"))
        [3.0, -1.0]
    """
    if world_size() == 1:
        return list(values)
    box = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return box.tolist()


def side_by_side(values: torch.Tensor) -> torch.Tensor:
    """What the ranks pass, as (ranks, n), on every rank; much cheaper than Python objects.

    Args:
        values: this rank's, (n,), on the device that the ranks talk from; as many on each.

    Example:
        >>> side_by_side(torch.tensor([3.0, -1.0]))
        tensor([[ 3., -1.]])
    """
    if world_size() == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def on_rank_zero(function: Callable[[], T]) -> T:
    """What ``function`` returns on rank 0, on every rank; an error there is an error on all.

    Raises:
        StormproofError: on the other ranks, with what rank 0 raised in words.

    Example:
        >>> on_rank_zero(lambda: 600)
        600
    """
    if world_size() == 1:
        return function()
    if dist.get_rank() != 0:
        value, failure = share(cast("Any", None))
        if failure is not None:
            sentence, exit_code = failure
            error = StormproofError(sentence)
            error.exit_code = exit_code
            raise error
        return value
    try:
        value = function()
    except Exception as error:
        share((None, (f"rank 0: {error}", getattr(error, "exit_code", 1))))
        raise
    share((value, None))
    return value


def agree(what: str, mine: str | None) -> None:
    """Stops all ranks together if they do not say the same of ``what``.

    Raises:
        RanksDisagreeError: on every rank, with what each said.

    Example:
        >>> agree("the newest checkpoint", "000012-step-600")
    """
    said = everyone(mine)
    if any(other != said[0] for other in said):
        listed = "; ".join(f"rank {rank}: {each or 'none'}" for rank, each in enumerate(said))
        raise RanksDisagreeError(f"the ranks do not agree on {what} ({listed}): start all of them again")

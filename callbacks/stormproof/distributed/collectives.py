"""Collectives for Python objects and numbers. All ranks must call them together."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from stormproof.errors import RanksDisagreeError, StormproofError

T = TypeVar("T")

SYNC_EVERY_N_STEPS = 10
"""Interval of additional collectives, in steps, because a collective in every step would cost too much time."""


def world_size() -> int:
    """Returns the number of ranks in the process group. 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def broadcast(value: T) -> T:
    """Returns rank 0's ``value`` on every rank.

    Args:
        value: A picklable object. Ignored on other ranks.

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
    """Returns the values of all ranks on rank 0, with tensors in host memory. Returns None on the other ranks.

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
    """Returns the values of all ranks on every rank.

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
    """Returns the element-wise maximum over all ranks on every rank. Much faster than gathering Python objects.

    Args:
        values: Values of this rank. The number must be equal on all ranks.
        device: Device for the collective. A GPU with NCCL.

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
    """Returns the values of all ranks with shape ``(ranks, n)`` on every rank. Much faster than Python objects.

    Args:
        values: Values of this rank with shape ``(n,)``, on the device of the collective. The shape must be equal on all
            ranks.

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
    """Calls ``function`` on rank 0 and returns its result on every rank. An exception is raised on every rank.

    Raises:
        StormproofError: On the other ranks, with the message and exit code of rank 0's exception.

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
    """Checks that all ranks pass the same ``value``.

    Args:
        name: Description of the value, for the message.
        value: Value of this rank.

    Raises:
        RanksDisagreeError: On every rank, with the values of all ranks.

    Example:
        >>> assert_equal("the newest checkpoint", "000012-step-600")
    """
    values = all_gather(value)
    if any(gathered_value != values[0] for gathered_value in values):
        description = "; ".join(f"rank {rank}: {rank_value or 'none'}" for rank, rank_value in enumerate(values))
        raise RanksDisagreeError(f"The ranks do not agree on {name} ({description}). Restart all ranks.")

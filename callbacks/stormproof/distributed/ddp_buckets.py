"""Preserves DDP's summation order of gradients across restarts, so that three or more ranks resume bit for bit.

DDP all-reduces gradients in buckets. Its first backward pass uses provisional buckets. Before the second pass it
rebuilds them in the order in which the gradients became ready. A restarted process begins with provisional buckets
again, and a gradient's place in a bucket decides in which order three or more ranks are summed. This module saves the
rebuilt order. After a restart it runs a backward pass of zeros in this order, so that DDP rebuilds the same buckets
before the first real pass. Two ranks need no order, because addition is commutative.

References:
    Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training (VLDB 2020), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from stormproof.distributed.collectives import world_size

_SAMPLE_RATE = 100
"""DDP's default interval between runtime statistics, in iterations."""


def capture_order(model: object) -> list[int] | None:
    """Rebuilds DDP's buckets, as the next forward pass would, and returns the parameter indices in bucket order.

    All ranks call it together, between two batches. DDP exposes the order in its logging data.

    Returns:
        Indices of the parameters that DDP reduces. None before the first backward pass, with fewer than three ranks, or
        if DDP does not rebuild its buckets, for example with ``find_unused_parameters=True``.
    """
    if not isinstance(model, DistributedDataParallel) or world_size() < 3 or find_order_problem(model):
        return None
    assert model.logger is not None
    model.reducer._rebuild_buckets()  # as the next forward pass does
    model.reducer._set_ddp_runtime_logging_sample_rate(1)
    model.logger.set_runtime_stats_and_log()
    model.reducer._set_ddp_runtime_logging_sample_rate(_SAMPLE_RATE)
    order = str(model._get_ddp_logging_data().get("rebuilt_per_bucket_param_indices", ""))
    return [int(index) for bucket in order.split(",") for index in bucket.split()] or None


def restore_order(model: object, order: Sequence[int] | None) -> None:
    """Makes DDP rebuild its buckets in this order. Sets all gradients to None. All ranks call it together.

    Args:
        model: Model of the strategy, before its first backward pass.
        order: From :func:`capture_order`.
    """
    if not isinstance(model, DistributedDataParallel) or not order or find_order_problem(model):
        return
    parameters, _ = model._build_params_for_reducer()
    if sorted(order) != list(range(len(parameters))):
        rank_zero_warn(
            f"DDP reduces {len(parameters)} parameters, but reduced {len(order)} when the checkpoint was saved. "
            "Gradients are summed in a different order, so this resume is not exact."
        )
        return
    with torch.enable_grad():
        model.reducer.prepare_for_forward()
        model.reducer.prepare_for_backward([])
        for index in order:
            (parameters[index] * 0).sum().backward()
    model.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None


def syncs_buffers(model: object) -> bool | None:
    """Returns whether DDP broadcasts the buffers of rank 0 in the next forward pass. None without DDP.

    In manual optimization, Lightning enables the broadcast for the first pass only.
    """
    return model.require_forward_param_sync if isinstance(model, DistributedDataParallel) else None


def restore_buffer_sync(model: object, is_syncing: bool | None) -> None:
    """Restores the value from :func:`syncs_buffers`."""
    if isinstance(model, DistributedDataParallel) and is_syncing is not None:
        model.require_forward_param_sync = is_syncing


def find_communication_hooks(model: object) -> Sequence[tuple[Any, Any]]:
    """Returns the communication hooks of DDP and their states. Empty without DDP."""
    return model._comm_hooks if isinstance(model, DistributedDataParallel) else ()


def find_order_problem(model: object) -> str | None:
    """Returns why the reduction of gradients cannot be restored and how to fix it, or None."""
    if not isinstance(model, DistributedDataParallel):
        return None
    hook_states = [getattr(hook, "__self__", state) for hook, state in find_communication_hooks(model)]
    if any(state is not None and not isinstance(state, ProcessGroup) for state in hook_states):
        return "the state of DDP's communication hook is not saved: use a stateless hook"
    if world_size() < 3:
        return None
    parameters, is_sparse = model._build_params_for_reducer()
    consequence = "sums gradients in a different order after a restart"
    problems = {
        f"DDP with static_graph=True {consequence}: set static_graph=False": getattr(model, "static_graph", False),
        f"DDP with sparse gradients {consequence}: set sparse=False": any(is_sparse),
        f"DDP with post-accumulate hooks {consequence}: remove the hooks": any(  # a hook may run the optimizer step
            parameter._post_accumulate_grad_hooks for parameter in parameters
        ),
        f"DDP with delay_all_reduce_named_params {consequence}: remove it": (
            model._delay_all_reduce_all_params or bool(model._delay_all_reduce_params)
        ),
    }
    return next((problem for problem, applies in problems.items() if applies), None)

"""The running state of torchmetrics inside a module, which a ``state_dict`` leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection


def capture(module: torch.nn.Module) -> dict[str, Any]:
    """The state of every metric in ``module``, by its name there.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> module = torch.nn.ModuleDict({"mean": MeanMetric()})
        >>> module["mean"].update(torch.tensor([1.0, 2.0]))
        >>> state = capture(module)
        >>> fresh = torch.nn.ModuleDict({"mean": MeanMetric()})
        >>> restore(fresh, state)
        >>> fresh["mean"].compute()
        tensor(1.5000)
    """
    for collection in module.modules():
        if isinstance(collection, MetricCollection):
            collection.values(copy_state=True)  # metrics that share a state have it in one of them until asked
    return {
        name: {
            "state": {key: list(value) if isinstance(value, list) else value for key, value in _state(metric).items()},
            "update_count": metric.update_count,
            "forward_cache": metric._forward_cache,
        }
        for name, metric in _metrics(module).items()
    }


def restore(module: torch.nn.Module, states: Mapping[str, Any]) -> None:
    """Sets every metric in ``module`` to its state; a metric that had none is left alone."""
    metrics = _metrics(module)
    for name, saved in states.items():
        metric = metrics[name]
        for key, value in saved["state"].items():
            moved = [item.to(metric.device) for item in value] if isinstance(value, list) else value.to(metric.device)
            setattr(metric, key, moved)
        metric._update_count = saved["update_count"]
        metric._computed = None
        cache = saved["forward_cache"]
        metric._forward_cache = cache.to(metric.device) if isinstance(cache, torch.Tensor) else cache


def _state(metric: Metric) -> Mapping[str, Any]:
    return metric.metric_state


def _metrics(module: torch.nn.Module) -> dict[str, Metric]:
    return {name: child for name, child in module.named_modules() if isinstance(child, Metric)}

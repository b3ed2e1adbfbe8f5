import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import CatMetric, MaxMetric, MeanMetric, MeanSquaredError, Metric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassPrecision, MulticlassRecall
from torchmetrics.wrappers import (
    BootStrapper,
    ClasswiseWrapper,
    MetricTracker,
    MinMaxMetric,
    MultioutputWrapper,
    MultitaskWrapper,
    Running,
)

from stormproof.resume import metric_state

Batch = tuple[torch.Tensor, ...]


class _Nested(nn.Module):
    """Metrics that lie in modules inside of modules, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.ModuleDict({"list": nn.ModuleList([MeanMetric(), MaxMetric()])})
        self.alias = self.deep["list"][0]

    def update(self, values: torch.Tensor) -> None:
        for metric in self.deep["list"]:
            metric.update(values)

    def compute(self) -> list[torch.Tensor]:
        return [self.alias.compute(), self.deep["list"][1].compute()]


class _Computed(nn.Module):
    """A wrapper that learns in ``compute`` or ``forward``, and not in ``update``."""

    def __init__(self, metric: Any, call: str) -> None:
        super().__init__()
        self.metric, self.call = metric, call

    def update(self, *batch: Any) -> None:
        if self.call == "forward":
            self.metric(*batch)
        else:
            self.metric.update(*batch)
            self.metric.compute()

    def compute(self) -> Any:
        return self.metric.compute()


class _Tracked(nn.Module):
    """A tracker with a new metric for every batch, as others have one for every epoch."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.tracker = MetricTracker(metric, maximize=True if isinstance(metric, Metric) else [True] * len(metric))

    def update(self, *batch: Any) -> None:
        self.tracker.increment()
        self.tracker.update(*batch)

    def compute(self) -> Any:
        return self.tracker.compute_all(), self.tracker.best_metric(return_step=True), self.tracker.n_steps


class _Seeded(nn.Module):
    """A metric that draws random numbers, which are another's to keep."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.metric = metric

    def update(self, *batch: Any) -> None:
        torch.manual_seed(3)
        self.metric.update(*batch)

    def compute(self) -> Any:
        return self.metric.compute()


class _Composed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean_metric, self.sum_metric = MeanMetric(), SumMetric()
        self.both = self.mean_metric + self.sum_metric

    def update(self, values: torch.Tensor) -> None:
        self.both.update(values)

    def compute(self) -> Any:
        return self.both.compute()


def _values(index: int) -> Batch:
    return (torch.arange(4.0) * (index - 2) + index,)


def _pairs(index: int) -> Batch:
    return _values(index)[0], torch.tensor([1.0, 0.0, 2.0, 1.0])


def _binary(index: int) -> Batch:
    return torch.tensor([0.1, 0.4, 0.35, 0.8]).roll(index), torch.tensor([0, 0, 1, 1])


def _classes(index: int) -> Batch:
    return torch.tensor([0, 1, 2, 1]).roll(index), torch.tensor([0, 1, 2, 2])


def _columns(index: int) -> Batch:
    return torch.arange(8.0).reshape(4, 2) * index, torch.ones(4, 2)


def _tasks(index: int) -> tuple[dict[str, torch.Tensor], ...]:
    first, second = _pairs(index)
    return {"a": first, "b": first}, {"a": second, "b": second}


def _groups() -> MetricCollection:
    return MetricCollection({
        "accuracy": MulticlassAccuracy(3, average="macro"),
        "precision": MulticlassPrecision(3, average="macro"),
        "recall": MulticlassRecall(3, average="macro"),
    })  # fmt: skip


KINDS: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "a mean": (MeanMetric, _values),
    "a maximum": (MaxMetric, _values),
    "a list": (CatMetric, _values),
    "lists of predictions": (BinaryAUROC, _binary),
    "counts of classes": (lambda: MulticlassAccuracy(3), _classes),
    "called, not updated": (lambda: _Computed(MulticlassAccuracy(3), "forward"), _classes),
    "a collection that shares states": (_groups, _classes),
    "a collection that shares none": (
        lambda: MetricCollection([MeanMetric(), SumMetric()], compute_groups=False),
        _values,
    ),
    "inside of modules": (_Nested, _values),
    "by class": (lambda: ClasswiseWrapper(MulticlassAccuracy(3, average=None)), _classes),
    "extremes of a metric": (lambda: _Computed(MinMaxMetric(MeanSquaredError()), "compute"), _pairs),
    "a running sum": (lambda: Running(SumMetric(), window=3), _values),
    "a running mean, called": (lambda: _Computed(Running(MeanMetric(), window=2), "forward"), _values),
    "a tracker": (lambda: _Tracked(MulticlassAccuracy(3)), _classes),
    "a tracker of a collection": (lambda: _Tracked(_groups()), _classes),
    "a bootstrap": (lambda: _Seeded(BootStrapper(MeanMetric(), num_bootstraps=3)), _values),
    "of several outputs": (lambda: MultioutputWrapper(MeanSquaredError(), num_outputs=2), _columns),
    "of several tasks": (lambda: MultitaskWrapper({"a": MeanSquaredError(), "b": MeanSquaredError()}), _tasks),
    "a sum of metrics": (_Composed, _values),
}


def _is_equal(first: Any, second: Any) -> bool:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    return True


def _last_results(module: nn.Module) -> dict[str, Any]:
    """What each metric returned when it was last called, which ``self.log`` takes where it is only updated since."""
    return {name: metric._forward_cache for name, metric in module.named_modules() if isinstance(metric, Metric)}


each_kind = pytest.mark.parametrize(("make", "batch"), KINDS.values(), ids=KINDS.keys())


@each_kind
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "already used"])
def test_a_metric_goes_on_as_if_it_had_never_stopped(
    make: Callable[[], Any], batch: Callable[[int], Any], used: bool, tmp_path: Path
):
    straight, killed, resumed = nn.ModuleDict({"m": make()}), nn.ModuleDict({"m": make()}), nn.ModuleDict({"m": make()})
    for index in range(5):
        straight["m"].update(*batch(index))
    for index in range(3):
        killed["m"].update(*batch(index))
    torch.save(metric_state.capture(killed), tmp_path / "state.pt")
    if used:  # by a sanity check
        resumed["m"].update(*batch(7))
        resumed["m"].compute()
    metric_state.restore(resumed, torch.load(tmp_path / "state.pt", weights_only=True))
    for index in (3, 4):
        resumed["m"].update(*batch(index))
    assert _is_equal(resumed["m"].compute(), straight["m"].compute())


@each_kind
def test_what_is_computed_right_after_is_the_same(make: Callable[[], Any], batch: Callable[[int], Any]):
    killed, resumed = nn.ModuleDict({"m": make()}), nn.ModuleDict({"m": make()})
    for index in range(3):
        killed["m"].update(*batch(index))
    metric_state.restore(resumed, metric_state.capture(killed))
    assert _is_equal(_last_results(resumed), _last_results(killed))
    assert _is_equal(resumed["m"].compute(), killed["m"].compute())


@each_kind
def test_looking_changes_nothing(make: Callable[[], Any], batch: Callable[[int], Any]):
    watched, alone = nn.ModuleDict({"m": make()}), nn.ModuleDict({"m": make()})
    for index in range(5):
        metric_state.capture(watched)
        for module in (watched, alone):
            module["m"].update(*batch(index))
    metric_state.capture(watched)
    assert _is_equal(watched["m"].compute(), alone["m"].compute())


def test_looking_at_metrics_that_share_a_state_does_not_keep_it_from_being_reset():
    module = nn.ModuleDict({"m": _groups()})
    for index in range(3):
        module["m"].update(*_classes(index))
        metric_state.capture(module)
    module["m"].reset()
    metric_state.capture(module)
    module["m"].update(*_classes(1))
    fresh = _groups()
    fresh.update(*_classes(1))
    assert _is_equal(module["m"].compute(), fresh.compute())


def test_a_metric_that_was_called_with_a_graph_goes_on(tmp_path: Path):
    killed, resumed = nn.ModuleDict({"m": MeanSquaredError()}), nn.ModuleDict({"m": MeanSquaredError()})
    predicted = torch.ones(2, requires_grad=True) * 2
    killed["m"](predicted, torch.zeros(2))
    torch.save(metric_state.capture(killed), tmp_path / "state.pt")
    metric_state.restore(resumed, torch.load(tmp_path / "state.pt", weights_only=True))
    resumed["m"](predicted, torch.ones(2))
    assert float(resumed["m"].compute()) == 2.5


def test_what_was_captured_does_not_change_with_the_metric():
    module = nn.ModuleDict({"list": CatMetric(), "mean": MeanMetric()})
    for metric in module.values():
        metric.update(torch.tensor([1.0, 2.0]))
    state = metric_state.capture(module)
    before = copy.deepcopy(state)
    for metric in module.values():
        metric.update(torch.tensor([5.0]))
    assert _is_equal(state, before)


def test_a_metric_that_was_never_updated_stays_so():
    killed, resumed = nn.ModuleDict({"m": MeanMetric()}), nn.ModuleDict({"m": MeanMetric()})
    resumed["m"].update(torch.ones(3))  # in a sanity check, say
    metric_state.restore(resumed, metric_state.capture(killed))
    assert not resumed["m"].update_called


def test_a_metric_that_is_new_is_left_alone():
    killed = nn.ModuleDict({"old": MeanMetric()})
    resumed = nn.ModuleDict({"old": MeanMetric(), "new": SumMetric()})
    resumed["new"].update(torch.ones(3))
    metric_state.restore(resumed, metric_state.capture(killed))
    assert resumed["new"].compute() == 3


def test_a_module_without_metrics_has_no_state():
    metric_state.restore(nn.Linear(1, 1), metric_state.capture(nn.Linear(1, 1)))
    assert not metric_state.capture(nn.Linear(1, 1))["metrics"]

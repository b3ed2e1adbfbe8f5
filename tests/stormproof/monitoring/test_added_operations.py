"""What the monitors add to a training step, counted: the clock of a shared machine tells nothing in a test."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from stormproof import DeadNeuronDetector, GradientNormMonitor, TrainingHealth
from stormproof.health.observers.observer import EARLY_STEPS
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RowsLogger, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS
WAITS = ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__")
DEPTH, STEPS = 5, 20
MONITORS: dict[str, Callable[..., list[pl.Callback]]] = {
    "norms": lambda **cadence: [GradientNormMonitor(**cadence)],
    "units": lambda **cadence: [DeadNeuronDetector(**cadence)],
    "both": lambda **cadence: [GradientNormMonitor(**cadence), DeadNeuronDetector(**cadence)],
}


class Deep(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(8, 8), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Counting(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["waits" if "_local_scalar_dense" in str(func) else "operations"] += 1
        return func(*args, **(kwargs or {}))


class First(pl.Callback):
    """Counts from the start of a batch, as the first callback."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []
        self.mode: Counting | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append(Counter())
        self.mode = Counting(self.steps[-1])
        self.mode.__enter__()


class Last(pl.Callback):
    """Counts until its end, as the last one."""

    def __init__(self, first: First) -> None:
        self.first = first

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.first.mode is not None
        self.first.mode.__exit__(None, None, None)
        self.first.mode = None


def count_operations(
    monkeypatch: pytest.MonkeyPatch, monitors: list[pl.Callback], every: int = 10
) -> list[Counter[str]]:
    """Operations, waits for the device and collectives of each step."""
    first = First()

    def note(operation: str, original: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            if first.mode is not None:
                first.steps[-1][operation] += 1
            return original(*arguments, **options)

        return noted

    with monkeypatch.context() as patch:
        for name in WAITS:
            patch.setattr(torch.Tensor, name, note("waits", getattr(torch.Tensor, name)))
        for name in ("all_reduce", "all_gather_object", "broadcast", "broadcast_object_list", "gather_object"):
            patch.setattr(dist, name, note("collectives", getattr(dist, name)))
        pl_trainer = make_trainer(
            callbacks=[first, *monitors, Last(first)], logger=RowsLogger(), log_every_n_steps=every
        )
        pl_trainer.fit(Deep(), DataLoader(TensorDataset(torch.randn(4 * STEPS, 8)), batch_size=4))
    return first.steps


def subtract_counts(steps: list[Counter[str]], baseline_steps: list[Counter[str]]) -> list[Counter[str]]:
    return [
        Counter({operation: step_counts[operation] - other_counts[operation] for operation in step_counts})
        for step_counts, other_counts in zip(steps, baseline_steps, strict=True)
    ]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Counter[str]]]:
    """What monitors add to each step of a training."""

    def add(monitor_name: str, every: int = 10, **cadence: Any) -> list[Counter[str]]:
        bare = count_operations(monkeypatch, [], every)
        return subtract_counts(count_operations(monkeypatch, MONITORS[monitor_name](**cadence), every), bare)

    return add


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """What TrainingHealth adds to each step of a training, beside both monitors."""
    both = count_operations(monkeypatch, MONITORS["both"](every_n_steps=10))
    with_health = count_operations(monkeypatch, [TrainingHealth(), *MONITORS["both"](every_n_steps=10)])
    return subtract_counts(with_health, both)


@pytest.mark.parametrize("which", MONITORS)
def test_between_two_measured_steps_nothing_is_added(which: str, added: Callable[..., list[Counter[str]]]):
    steps = added(which, every_n_steps=10)
    assert [number + 1 for number, step in enumerate(steps) if step["operations"]] == [1, 10, 20]
    assert all(not +step for number, step in enumerate(steps) if number + 1 not in {1, 10, 20})


@pytest.mark.parametrize("which", MONITORS)
def test_only_logging_steps_wait_for_the_device(which: str, added: Callable[..., list[Counter[str]]]):
    steps = added(which, every=5, every_n_steps=1)
    waits = {number + 1 for number, step in enumerate(steps) if step["waits"]}
    assert waits == (set() if which == "units" else {5, 10, 15, 20})


@pytest.mark.parametrize("which", MONITORS)
def test_no_step_has_a_collective(which: str, added: Callable[..., list[Counter[str]]]):
    assert not any(step["collectives"] for step in added(which, every_n_steps=1))


@pytest.mark.slow
def test_a_measured_step_takes_a_bounded_number_of_operations_a_tensor(added: Callable[..., list[Counter[str]]]):
    norms, units = (
        added(monitor_name, every_n_steps=1, every=1000)[STEPS // 2]["operations"]
        for monitor_name in ("norms", "units")
    )
    assert 0 < norms <= 10 * 2 * (DEPTH + 1) + 60  # views of the sampled weights and biases, before and after
    assert 0 < units <= 25 * DEPTH


def test_diagnosis_adds_to_most_steps_the_reading_of_the_loss_alone(health: list[Counter[str]]):
    looked_at = [step for step, counts in enumerate(health) if counts["operations"] > 3]
    assert looked_at == [step for step in sorted(EARLY_STEPS) if step < STEPS]
    between = [counts for step, counts in enumerate(health) if step not in looked_at]
    assert all(counts["waits"] == 2 for counts in between)  # the function, and the operation that it calls
    assert not any(counts["operations"] for counts in between[5:])


def test_a_close_look_takes_a_bounded_number_of_operations_a_layer(health: list[Counter[str]]):
    assert max(counts["operations"] for counts in health) <= 15 * 2 * (DEPTH + 1)
    assert max(counts["waits"] for counts in health) <= 40


def test_diagnosis_adds_no_collective(health: list[Counter[str]]):
    assert not any(counts["collectives"] for counts in health)

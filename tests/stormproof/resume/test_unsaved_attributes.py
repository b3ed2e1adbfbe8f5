import array
import functools
import threading
import warnings
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler, Subset
from torchmetrics import MeanMetric

from stormproof import CheckpointRecovery, resumable
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


def collect_warnings(
    folder: Path, fitted: Any, *callbacks: pl.Callback, lightning: Any = pl, **options: Any
) -> list[str]:
    recovery = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False)
    with warnings.catch_warnings(record=True) as warning_records:
        warnings.simplefilter("always")
        pl_trainer = make_trainer(lightning, callbacks=[recovery, *callbacks], max_epochs=2, **options)
        pl_trainer.fit(fitted, resumable(make_loader()), make_loader())
    return [str(record.message) for record in warning_records if "are not in the checkpoint" in str(record.message)]


class ChangingCallback(RegressionModule):
    """Has an attribute ``value`` that ``change(value)`` returns anew after each step."""

    value: Any
    change: Any

    def on_train_batch_end(self, *args: Any) -> None:
        self.value = type(self).change(self.value)


def appended(value: Any) -> Any:
    value.append((torch.zeros(2), 1.0))
    return value


def filled(value: Any) -> Any:
    return value.fill_(value.flatten()[0] + 1) if isinstance(value, torch.Tensor) else value + 1


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (0, lambda value: value + 1),
        (None, lambda value: (value or 0.0) + 1),
        (torch.zeros(3), filled),
        (torch.zeros(200_000), filled),
        (np.zeros((2, 2)), filled),
        (np.float32(1), filled),
        ([], appended),
        (deque([(torch.zeros(2), 1.0)] * 3, maxlen=3), lambda value: deque([*value, (torch.rand(2), 2.0)], maxlen=3)),
        ({"ema": {"decay": 0.0}}, lambda value: {"ema": {"decay": value["ema"]["decay"] + 0.1}}),
        ({1}, lambda value: value | {len(value) + 1}),
        (None, lambda _: 5.0),
        (frozenset({1}), lambda value: value | {len(value) + 1}),
        (Fraction(1), lambda value: value + 1),
        (array.array("d", [0.0]), lambda value: array.array("d", [value[0] + 1])),
        (b"", lambda value: value + b"a"),
        ("warm", lambda _: "main"),
        ({"a": {"b": {"c": {"d": {"e": [0]}}}}}, lambda value: {**value, "a": {"b": {"c": {"d": {"e": [1]}}}}}),
    ],
    ids=[
        "int",
        "None",
        "tensor",
        "large tensor",
        "array",
        "NumPy number",
        "list",
        "deque",
        "dict",
        "set",
        "first step only",
        "frozenset",
        "fraction",
        "array module",
        "bytes",
        "string",
        "deep",
    ],
)
def test_an_attribute_that_changes_and_is_in_no_checkpoint_is_named_once(value: Any, change: Any, tmp_path: Path):
    fitted = make_module(kind=type("Counting", (ChangingCallback,), {"change": staticmethod(change)}))
    fitted.value = value
    (message,) = collect_warnings(tmp_path, fitted)
    assert message.startswith("These attributes change during training but are not in the checkpoint: module.value. ")


class CountingCallback(pl.Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1


class SavingCallback(CountingCallback):
    def state_dict(self) -> dict[str, Any]:
        return {"so far": [self.count]}


class SavesInACheckpoint(CountingCallback):
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = {"so far": self.count}


class Exempt(CountingCallback):
    not_restored = ("count",)


class Restarts(CountingCallback):
    """Has an attribute that is the same between any two batches."""

    def on_train_batch_start(self, *args: Any) -> None:
        self.count = -1


class CountsCalls(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return inputs


class ExtraState(CountsCalls):
    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]


class Inner(RegressionModule):
    kind: type[torch.nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(type(self).kind(), self.layer)


def test_attributes_of_callbacks_and_submodules_are_named_too(tmp_path: Path):
    class Own(Inner):
        kind = CountsCalls

    (message,) = collect_warnings(tmp_path, make_module(kind=Own), CountingCallback())
    assert ": module.layer.0.calls, CountingCallback.count. " in message


@pytest.mark.parametrize(
    "callback",
    [SavingCallback(), SavesInACheckpoint(), Exempt(), Restarts()],
    ids=lambda instance: type(instance).__name__,
)
def test_an_attribute_that_is_saved_or_exempt_or_constant_is_not_named(callback: pl.Callback, tmp_path: Path):
    assert collect_warnings(tmp_path, make_module(), callback) == []


class Converts(pl.Callback):
    """Saves its attributes as other types with the same values."""

    def __init__(self) -> None:
        self.best, self.array = np.float64(0), np.zeros(3)
        self.scalar, self.large = torch.zeros(()), torch.zeros(200_000)
        self.values, self.vector, self.seen, self.count = [0.0], torch.zeros(2), {10, 9}, 0
        self.mask = torch.ones(400, 400).triu()

    def on_train_batch_end(self, *args: Any) -> None:
        self.best, self.scalar = self.best + 1, self.scalar + 1
        self.array += 1
        self.large += 1
        self.count += 1
        self.values.append(0.5)
        self.vector += 1
        self.seen.add(self.count)
        self.mask = torch.ones(400, 400).triu()  # constant, but always new

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": float(self.best),
            "array": torch.tensor(self.array),
            "scalar": self.scalar.item(),
            "large": self.large.clone(),
            "values": torch.tensor(self.values),
            "vector": self.vector.tolist(),
            "seen": sorted(self.seen),
            "count": float(self.count),
        }


def test_a_value_that_is_saved_as_another_type_is_not_named(tmp_path: Path):
    assert collect_warnings(tmp_path, make_module(), Converts()) == []


class SharesAName(CountingCallback):
    """Saves two different values under the same name, one in its own state and one at the top of the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        return {"count": -self.count}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["count"] = self.count


def test_an_entry_of_a_callback_does_not_hide_one_of_the_checkpoint(tmp_path: Path):
    assert collect_warnings(tmp_path, make_module(), SharesAName()) == []


class MovesItsEntry(CountingCallback):
    """Saves its attribute at another place from the third step on."""

    def state_dict(self) -> dict[str, Any]:
        return {"first": {"count": self.count}} if self.count < 3 else {"second": [0, self.count]}


class StopsSaving(MovesItsEntry):
    """Does not save its attribute from the sixth step on."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() if self.count < 6 else {"second": [0]}


def test_an_attribute_that_is_saved_at_another_place_later_is_not_named(tmp_path: Path):
    assert collect_warnings(tmp_path, make_module(), MovesItsEntry()) == []


def test_an_attribute_that_is_no_longer_saved_is_named(tmp_path: Path):
    (message,) = collect_warnings(tmp_path, make_module(), StopsSaving())
    assert ": StopsSaving.count. " in message


class Average(pl.Callback):
    """Saves a moving average of the weights, which it keeps in a module of its own."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.average = torch.optim.swa_utils.AveragedModel(pl_module.layer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.average.update_parameters(pl_module.layer)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict()}


@pytest.mark.parametrize("kind", [Average, EMAWeightAveraging])
def test_an_average_of_the_weights_that_is_saved_is_not_named(kind: type[pl.Callback], tmp_path: Path):
    assert collect_warnings(tmp_path, make_module(), type("Own", (kind,), {})()) == []


class Flag(pl.Callback):
    """Has an attribute whose value happens to be that of another one, which is saved."""

    def __init__(self) -> None:
        self.enabled, self.flag = True, False

    def on_train_batch_end(self, *args: Any) -> None:
        self.flag = True

    def state_dict(self) -> dict[str, Any]:
        return {"enabled": self.enabled}


class DropsLess(pl.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.layer[0].p = 0.2 / (1 + trainer.current_epoch)


def test_an_equal_value_saved_under_another_name_does_not_count_as_saved(tmp_path: Path):
    assert "Flag.flag" in " ".join(collect_warnings(tmp_path, make_module(), Flag()))


def test_a_changed_dropout_rate_is_reported(tmp_path: Path):
    class Dropping(Inner):
        kind = torch.nn.Dropout

    assert "module.layer.0.p" in " ".join(collect_warnings(tmp_path, make_module(kind=Dropping), DropsLess()))


def test_an_extra_state_is_saved(tmp_path: Path):
    class Own(Inner):
        kind = ExtraState

    assert collect_warnings(tmp_path, make_module(kind=Own)) == []


def test_a_network_in_a_list_that_training_changes_is_named(tmp_path: Path):
    class Teacher(RegressionModule):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = [torch.nn.Linear(2, 1)]
            self.constant = [torch.nn.Linear(2, 1)]

        @torch.no_grad()
        def on_train_batch_end(self, *args: Any) -> None:
            self.teacher[0].weight.lerp_(self.layer.weight, 0.1)

    (message,) = collect_warnings(tmp_path, make_module(kind=Teacher))
    assert ": module.teacher[0].weight. " in message


class Teaching(torch.nn.Module):
    """Changes a network in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = [torch.nn.Linear(2, 1)]

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.teacher[0].weight += 1
        return inputs


class ExemptTeaching(Teaching):
    not_restored = ("teacher",)


@pytest.mark.parametrize(("kind", "messages"), [(Teaching, 1), (ExemptTeaching, 0)])
def test_a_submodule_can_exempt_a_network_in_a_list(kind: type[torch.nn.Module], messages: int, tmp_path: Path):
    fitted = make_module(kind=type("Own", (Inner,), {"kind": kind}))
    assert len(collect_warnings(tmp_path, fitted)) == messages


class Odd(dict):
    """Raises if it is iterated."""

    def __iter__(self) -> Any:
        raise RuntimeError

    items = values = keys = __iter__


def test_attributes_that_cannot_be_compared_are_ignored(tmp_path: Path):
    class Holds(RegressionModule):
        def __init__(self) -> None:
            super().__init__()
            self.sparse = torch.eye(2).to_sparse()

        def on_train_batch_end(self, *args: Any) -> None:
            self.sparse = torch.eye(2).to_sparse()
            self.meta = torch.empty(2, device="meta")
            self.objects = np.array([object()])
            self.odd = Odd(a=1)
            self.circle = [object()]
            self.circle.append(self.circle)
            self.lock = threading.Lock()

    assert collect_warnings(tmp_path, make_module(kind=Holds)) == []


class Buffer:
    """Has state that changes with each call."""

    def __init__(self, object_class: Any = torch.Tensor) -> None:
        self.entries, self.last, self._cache = [], None, {}
        self._object_class = object_class

    def __call__(self, *args: Any) -> None:
        self.entries.append(self._object_class())
        self._cache[len(self.entries)] = self.last = 5.0


class BufferedData(Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.buffer: Any = None
        self.rows: Any = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        self.rows = torch.ones(8, 2) if self.rows is None else self.rows  # as from a file, at first use
        if self.buffer:
            self.buffer()
        return self.rows[index]


class BufferedSampler(Sampler[int]):
    def __init__(self) -> None:
        self.buffer: Any = Buffer()
        self.epoch = 0

    def __iter__(self) -> Any:
        self.buffer([])
        self.epoch += 1
        return iter(range(8))

    def __len__(self) -> int:
        return 8


class BufferedOptimizer(torch.optim.SGD):
    buffer: Any

    def step(self, closure: Any = None) -> Any:
        self.buffer()
        return super().step(closure)


class BufferedSchedule(torch.optim.lr_scheduler.LambdaLR):
    """Does not save its buffer."""

    def __init__(self, optimizer: Any) -> None:
        self.buffer = Buffer()
        super().__init__(optimizer, lambda _: 1.0)

    def step(self, *args: Any) -> None:
        self.buffer()
        super().step(*args)

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "buffer"}


class Buffered(RegressionModule):
    """Owns a schedule, and buffers."""

    make_buffers: Any = dict
    optimizer_class: Any = torch.optim.SGD
    schedule_class: Any = functools.partial(
        torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=99, cycle_momentum=False
    )

    def configure_optimizers(self) -> Any:
        self.replay = type(self).make_buffers()
        self.optimizer = type(self).optimizer_class(self.layer.parameters(), lr=0.1)
        if isinstance(self.optimizer, BufferedOptimizer):
            self.optimizer.buffer = Buffer()
        self.schedule = type(self).schedule_class(self.optimizer)
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def on_train_batch_end(self, *args: Any) -> None:
        for buffer in self.replay.values():
            buffer()


def collect_buffer_warnings(folder: Path, dataset: Any, sampler: Any, callbacks: Any, **attributes: Any) -> list[str]:
    fitted = make_module(kind=type("Own", (Buffered,), attributes))
    recovery = CheckpointRecovery(folder, every_n_train_steps=2, async_save=False)
    batch_sampler = BatchSampler(sampler, 2, drop_last=False)
    loader = resumable(DataLoader(dataset, batch_sampler=batch_sampler))
    with warnings.catch_warnings(record=True) as warning_records:
        warnings.simplefilter("always")
        make_trainer(pl, callbacks=[recovery, *callbacks], max_epochs=2).fit(fitted, loader)
    return [str(record.message) for record in warning_records if "are not in the checkpoint" in str(record.message)]


class BufferedCallback(pl.Callback):
    def __init__(self) -> None:
        self.on_batch = Buffer()

    def on_train_batch_end(self, *args: Any) -> None:
        self.on_batch()


def make_buffered_data() -> BufferedData:
    dataset = BufferedData()
    dataset.buffer = Buffer()
    return dataset


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("module.replay['inner'].entries", {"make_buffers": lambda: {"inner": Buffer()}}),
        ("module.replay['inner'].entries", {"make_buffers": lambda: {"inner": Buffer(object_class=Buffer)}}),
        ("BufferedCallback.on_batch.entries", {"callbacks": [BufferedCallback()]}),
        ("dataset.buffer.entries", {"dataset": make_buffered_data()}),
        ("dataset.dataset.buffer.entries", {"dataset": Subset(make_buffered_data(), range(8))}),
        ("batch_sampler.sampler.buffer.entries", {"sampler": BufferedSampler()}),
        ("optimizer.buffer.entries", {"optimizer_class": BufferedOptimizer}),
        ("schedule.buffer.entries", {"schedule_class": BufferedSchedule}),
    ],
    ids=["module", "objects", "callback", "data set", "subset", "sampler", "optimizer", "schedule"],
)
def test_a_buffer_in_an_object_that_an_owner_has_is_named(path: str, arguments: Any, tmp_path: Path):
    default = {"dataset": BufferedData(), "sampler": SequentialSampler(range(8)), "callbacks": []}
    (message,) = collect_buffer_warnings(tmp_path, **default | arguments)
    assert f"{path}. A resume" in message


@pytest.mark.parametrize("optimizer_class", [torch.optim.LBFGS, torch.optim.Adam])
def test_optimizers_and_data_read_at_first_use_are_not_named(optimizer_class: Any, tmp_path: Path):
    sampler = BufferedSampler()
    sampler.buffer = len
    assert collect_buffer_warnings(tmp_path, BufferedData(), sampler, [], optimizer_class=optimizer_class) == []


@BOTH_PACKAGES
def test_what_lightning_and_torchmetrics_keep_is_not_named(lightning: Any, tmp_path: Path):
    class Usual(ValidatedRegressionModule):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.others = MeanMetric(), [MeanMetric()]
            self.alias = self.layer.weight
            self.save_hyperparameters({"lr": 0.1})  # type: ignore[attr-defined]

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.mean(loss.detach())
            self.others[0].update(loss.detach())
            self.log("train/mean", self.mean)  # type: ignore[attr-defined]
            self.log("train/loss", loss, on_epoch=True)  # type: ignore[attr-defined]
            return loss

    class Mine(lightning.callbacks.ModelCheckpoint if lightning is not pl else ModelCheckpoint):
        pass

    early = lightning.callbacks.EarlyStopping if lightning is not pl else EarlyStopping
    callbacks = [early("val/loss"), Mine(tmp_path / "own", monitor="val/loss", every_n_train_steps=2)]
    assert (
        collect_warnings(
            tmp_path / "ours", make_module(lightning, Usual), *callbacks, lightning=lightning, enable_checkpointing=True
        )
        == []
    )

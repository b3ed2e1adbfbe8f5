"""State in closures, classes, global variables, hooks and worker processes is named."""

import functools
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch.utils.data import DataLoader, Dataset, default_collate

from stormproof import CheckpointRecovery, GradientNormMonitor, TrainingHealth, resumable
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RegressionModule, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS
COUNTS = {"batches": 0}


def make_counter() -> Callable[[], int]:
    count = 0

    def increment(*_: Any) -> int:
        nonlocal count
        count += 1
        return count

    return increment


class Counting(RegressionModule):
    num_batches = 0

    def on_train_batch_start(self, *_: Any) -> None:
        type(self).count(self)

    def count(self) -> None:
        pass


class CountsInClosure(Counting):
    increment: Any

    def on_fit_start(self) -> None:
        self.increment = make_counter()

    def count(self) -> None:
        self.increment()


class CountsInClass(Counting):
    def count(self) -> None:
        CountsInClass.num_batches += 1


class CountsInGlobal(Counting):
    def count(self) -> None:
        COUNTS["batches"] += 1


class CountsInHook(Counting):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        optimizer.register_step_post_hook(make_counter())  # type: ignore[arg-type]
        return optimizer


class Counter:
    count = 0


COUNTERS = [Counter()]


class CountsInGlobalObject(Counting):
    def count(self) -> None:
        COUNTERS[0].count += 1


class Tally:
    count = 0


class CountsInOtherClass(Counting):
    def count(self) -> None:
        Tally.count += 1


HELPERS = ModuleType("helpers_of_a_test")


class CountsInOtherModule(Counting):
    def on_fit_start(self) -> None:
        sys.modules[HELPERS.__name__] = HELPERS
        vars(HELPERS)["num_batches"] = 0

    def count(self) -> None:
        vars(HELPERS)["num_batches"] += 1

    def on_fit_end(self) -> None:
        del sys.modules[HELPERS.__name__]


TEACHER = torch.nn.BatchNorm1d(2)


class UpdatesGlobalNetwork(Counting):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        TEACHER(batch)
        return super().training_step(batch, batch_idx)


class CountsInForwardHook(Counting):
    def configure_optimizers(self) -> Any:
        increment = make_counter()
        self.layer.register_forward_hook(lambda *_: increment() and None)
        return super().configure_optimizers()


class CountsInParameterHook(Counting):
    def configure_optimizers(self) -> Any:
        increment = make_counter()
        self.layer.weight.register_hook(lambda _: increment() and None)
        return super().configure_optimizers()


class CountsInDefault(Counting):
    def on_fit_start(self) -> None:
        def increment(counts: Any = [0]) -> None:  # noqa: B006 (the mistake)
            counts[0] += 1

        self.increment = increment

    def count(self) -> None:
        self.increment()


class CountsInFunction(Counting):
    def on_fit_start(self) -> None:
        self.increment: Any = lambda: None
        self.increment.calls = 0

    def count(self) -> None:
        self.increment.calls += 1


class CountsInPartial(Counting):
    def on_fit_start(self) -> None:
        self.increment = partial(lambda state: state.update(count=state["count"] + 1), {"count": 0})

    def count(self) -> None:
        self.increment()


class CountsInGenerator(Counting):
    def on_fit_start(self) -> None:
        def generate() -> Iterator[int]:
            number = 0
            while True:
                number += 1
                yield number

        self.numbers = generate()

    def count(self) -> None:
        next(self.numbers)


class CountsPerObject(Counting):
    def on_fit_start(self) -> None:
        self.counts = weakref.WeakKeyDictionary({self: 0})

    def count(self) -> None:
        self.counts[self] += 1


class CopiesParameters(Counting):
    """Averages the weights, but does not save the average."""

    def on_fit_start(self) -> None:
        self.averages = [torch.nn.Parameter(value.detach().clone()) for value in self.parameters()]

    def count(self) -> None:
        with torch.no_grad():
            for average, value in zip(self.averages, self.layer.parameters(), strict=True):
                average.lerp_(value, 0.5)


VIEWS: dict[str, Any] = {}


class ViewsWeights(RegressionModule):
    """Has other names for values that are saved: in a global variable, a list and a closure."""

    def on_fit_start(self) -> None:
        weight = self.layer.weight
        VIEWS["first row"] = weight.detach()[0]
        self.views, self.read = [weight.detach().view(-1)], lambda: weight[0]

    def on_train_start(self) -> None:
        VIEWS["optimizer"] = self.trainer.optimizers[0].state


class ExemptGlobal(CountsInGlobal):
    not_restored = ("COUNTS",)


class CountingCollate(Counter):
    def __call__(self, samples: Any) -> Any:
        self.count += 1
        return default_collate(samples)


class ExemptCollate(CountingCollate):
    """Does not exempt what the module exempts."""

    not_restored = ("count",)


class Cyclic(RegressionModule):
    """The number of steps of the schedule equals the number of batches."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def collect_warnings(folder: Path, kind: type[RegressionModule], loaders: Any, *callbacks: pl.Callback) -> list[str]:
    recovery = CheckpointRecovery(folder, every_n_train_steps=2, async_save=False)
    with warnings.catch_warnings(record=True) as warning_records:
        warnings.simplefilter("always")
        make_trainer(pl, callbacks=[recovery, *callbacks], max_epochs=2).fit(make_module(kind=kind), loaders)
    return [str(record.message) for record in warning_records if "These attributes change" in str(record.message)]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (CountsInClosure, "module.increment:count"),
        (CountsInClass, "CountsInClass.num_batches"),
        (CountsInGlobal, f"{__name__}.COUNTS"),
        (CountsInHook, r"optimizers\[0\]._optimizer_step_post_hooks\[\d+\]:count"),
        (CountsInGlobalObject, rf"{__name__}.COUNTERS\[0\].count"),
        (CountsInOtherClass, "Tally.count"),
        (CountsInOtherModule, "helpers_of_a_test.num_batches"),
        (UpdatesGlobalNetwork, rf"{__name__}.TEACHER.num_batches_tracked"),
        (CountsInForwardHook, r"module.layer._forward_hooks\[\d+\]:increment:count"),
        (CountsInParameterHook, r"module.layer.weight._backward_hooks\[\d+\]:increment:count"),
        (CountsInDefault, "module.increment.__defaults__"),
        (CountsInFunction, "module.increment.calls"),
        (CountsInPartial, "module.increment"),
        (CountsInGenerator, "module.numbers:number"),
        (CountsPerObject, "module.counts.data"),
        (CopiesParameters, "module.averages"),
    ],
)
def test_a_variable_that_changes_outside_of_attributes_is_named(kind: Any, path: str, tmp_path: Path):
    (message,) = collect_warnings(tmp_path, kind, resumable(make_loader()))
    assert re.search(rf"{path}\. A resume", message)


def test_a_counter_in_a_function_of_lightnings_callback_is_named(tmp_path: Path):
    increment = make_counter()
    callback = LambdaCallback(on_train_batch_end=lambda *_: increment() and None)
    (message,) = collect_warnings(tmp_path, RegressionModule, resumable(make_loader()), callback)
    assert "LambdaCallback.on_train_batch_end:increment:count. A resume" in message


def make_printer(text: str) -> LambdaCallback:
    return LambdaCallback(on_train_start=lambda *_: text.upper() and None)


def test_two_callbacks_of_one_kind_are_kept_apart(tmp_path: Path):
    printers = make_printer("a"), make_printer("b")
    assert collect_warnings(tmp_path, RegressionModule, resumable(make_loader()), *printers) == []


@functools.singledispatch
def describe(value: object) -> str:
    return str(value)


class Describes(Counting):
    def count(self) -> None:
        describe(1)


def test_caches_of_the_standard_library_are_not_named(tmp_path: Path):
    assert collect_warnings(tmp_path, Describes, resumable(make_loader())) == []


def test_an_error_in_the_search_is_announced_and_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise TypeError("no storage")

    monkeypatch.setattr("stormproof.resume.unsaved_attributes._find_saved", fail)
    with pytest.warns(UserWarning, match="the search for unsaved state failed with TypeError: no storage") as records:
        collect_warnings_of_fit(tmp_path)
    assert len([record for record in records if "search for unsaved state" in str(record.message)]) == 1


def collect_warnings_of_fit(folder: Path) -> None:
    recovery = CheckpointRecovery(folder, every_n_train_steps=2, async_save=False)
    make_trainer(pl, callbacks=[recovery], max_epochs=1).fit(make_module(), resumable(make_loader()))


def test_a_counter_in_a_communication_hook_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hook = make_counter()

    class Communicating(Counting):
        def count(self) -> None:
            hook()

    unsaved_attributes = "stormproof.resume.unsaved_attributes"
    monkeypatch.setattr(f"{unsaved_attributes}.find_communication_hooks", lambda _: [(hook, None)])
    (message,) = collect_warnings(tmp_path, Communicating, resumable(make_loader()))
    assert "communication_hook:count. A resume" in message


def test_other_names_of_saved_values_are_not_named(tmp_path: Path):
    assert collect_warnings(tmp_path, ViewsWeights, resumable(make_loader())) == []


def test_hooks_that_monitors_register_are_not_named(tmp_path: Path):
    monitors = (GradientNormMonitor(every_n_steps=1), TrainingHealth(every_n_steps=3))
    assert collect_warnings(tmp_path, RegressionModule, resumable(make_loader()), *monitors) == []


class EvaluatedSchedule(RegressionModule):
    """Has a schedule from a text, whose function belongs to no module."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        names: Any = {1: 2}
        function = eval("lambda epoch: 0.95**epoch", names)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, function)]


def test_a_function_without_a_module_does_not_end_the_run(tmp_path: Path):
    assert collect_warnings(tmp_path, EvaluatedSchedule, resumable(make_loader())) == []


def test_a_module_can_exempt_a_global_variable(tmp_path: Path):
    loader = DataLoader(torch.ones(8, 2), batch_size=2, collate_fn=ExemptCollate())  # type: ignore[arg-type]
    assert collect_warnings(tmp_path, ExemptGlobal, resumable(loader)) == []


@pytest.mark.parametrize(
    "collate_fn",
    [functools.partial(CountingCollate()), CountingCollate().__call__],
    ids=["partial function", "bound method"],
)
def test_the_state_behind_a_collate_fn_is_named(collate_fn: Any, tmp_path: Path):
    (message,) = collect_warnings(tmp_path, RegressionModule, resumable(make_loader(collate_fn=collate_fn)))
    assert re.search(r"collate_fn\S*count\. A resume", message)


def test_the_steps_of_a_schedule_do_not_hide_a_counter_of_batches(tmp_path: Path):
    loader = DataLoader(torch.ones(8, 2), batch_size=2, collate_fn=CountingCollate())  # type: ignore[arg-type]
    (message,) = collect_warnings(tmp_path, Cyclic, resumable(loader))
    assert "collate_fn.count. A resume" in message


class CyclicCountInLambda(Cyclic):
    """Counts the batches of the schedule in the function of another one."""

    def configure_optimizers(self) -> Any:
        optimizer, increment = torch.optim.SGD(self.layer.parameters(), lr=0.1), make_counter()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.99 ** increment())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_the_steps_of_a_schedule_do_not_hide_a_counter_in_its_function(tmp_path: Path):
    (message,) = collect_warnings(tmp_path, CyclicCountInLambda, resumable(make_loader()))
    assert "lr_schedulers[0].lr_lambdas[0]:increment:count. A resume" in message


class Rows(Dataset[torch.Tensor]):
    def __init__(self, value: float) -> None:
        self.rows = torch.full((8, 2), value)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


class UsesFirst(RegressionModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch["a"], batch_idx)


def test_data_sets_of_several_loaders_are_kept_apart(tmp_path: Path):
    loaders = {name: resumable(DataLoader(Rows(value), batch_size=2)) for name, value in {"a": 1.0, "b": 2.0}.items()}
    assert collect_warnings(tmp_path, UsesFirst, loaders) == []


@pytest.mark.parametrize("is_persistent", [False, True])
def test_a_counter_in_worker_processes_is_named_once(
    is_persistent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write(message: Any, *_: Any) -> None:
        with (tmp_path / "warnings.txt").open("a") as file:
            file.write(f"{message}\n")

    loader: Any = DataLoader(
        Rows(1.0), batch_size=1, num_workers=1, persistent_workers=is_persistent, collate_fn=CountingCollate()
    )
    resumable_loader = resumable(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", write)  # inherited by the workers
        for _ in range(2):
            assert len(list(resumable_loader)) == 8
    assert (tmp_path / "warnings.txt").read_text().count(
        "loader: collate_fn.count. They are not in the checkpoint"
    ) == 1

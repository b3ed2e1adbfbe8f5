"""Training state that ``torch.load(weights_only=True)`` refuses is restored and never ends a run."""

import datetime as dt
import enum
import os
import pickle
import shutil
import threading
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, resumable
from stormproof.errors import NotResumableError
from stormproof.lightning.layout import Layout
from stormproof.resume import refused_state
from tests.support.recovery_fits import BatchEndCallback
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RegressionModule, make_loader, make_module, make_trainer

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

Pair = namedtuple("Pair", "first second")  # noqa: PYI024 (a class without types)


class Phase(enum.Enum):
    WARM_UP = 1
    TRAINING = 2


@dataclass
class Statistics:
    count: int = 0
    means: list[torch.Tensor] = field(default_factory=list)


class Unit(torch.Tensor):
    """Has an attribute that no operation keeps."""

    unit: int


def _convert(value: Any) -> Any:
    converted = (value + 1).as_subclass(Unit)
    converted.unit = getattr(value, "unit", 0) + 1
    return converted


def _extend(values: Any) -> Any:
    values.append(len(values) + 0.5)
    return values


def _count(values: Any) -> Any:
    values["steps"] += 1
    return values


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "string": (lambda: "a", lambda value: value + "b"),
    "bytes": (lambda: b"a", lambda value: value + b"b"),
    "deque": (lambda: deque(maxlen=3), _extend),
    "deque of tensors": (lambda: deque(maxlen=2), lambda value: value.append(torch.ones(2) * len(value)) or value),
    "tensor in two deques": (
        lambda: [deque([tensor := torch.zeros(1)]), deque([tensor])],
        lambda value: value[0][0].add_(1) is value[1][0] and value,
    ),
    "deque in a list": (lambda: [deque(maxlen=3)], lambda value: [_extend(value[0])]),
    "set": (lambda: {1}, lambda value: value | {len(value) + 1}),
    "frozenset": (lambda: frozenset({1}), lambda value: value | {len(value) + 1}),
    "defaultdict": (lambda: defaultdict(int), _count),
    "OrderedDict": (lambda: OrderedDict(steps=0), _count),
    "Counter": (Counter, _count),
    "named tuple": (lambda: Pair(0, torch.zeros(1)), lambda value: Pair(value.first + 1, value.second + 1)),
    "NumPy array": (lambda: np.zeros(2), lambda value: value + 1),
    "NumPy generator": (lambda: np.random.default_rng(1), lambda value: value.random() and value),
    "fraction": (lambda: Fraction(1, 2), lambda value: value + 1),
    "time": (lambda: dt.timedelta(0), lambda value: value + dt.timedelta(seconds=1)),
    "enum": (lambda: Phase.WARM_UP, lambda _: Phase.TRAINING),
    "nested tensor": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]), lambda value: value * 2),
    "tensor of a subclass": (lambda: torch.zeros(2).as_subclass(Unit), _convert),
    "dataclass": (Statistics, lambda value: Statistics(value.count + 1, [*value.means, torch.ones(1)])),
}


def _describe(value: Any) -> str:
    attributes = vars(value) if isinstance(value, Unit) else ""
    return repr(value.bit_generator.state if isinstance(value, np.random.Generator) else value) + str(attributes)


def make_optimizer_class(make: Callable[[], Any], change: Callable[[Any], Any]) -> type[torch.optim.Optimizer]:
    """Returns a class that keeps ``make()`` in the state of each parameter and replaces it in each step."""

    class Remembering(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                state["value"] = change(state["value"] if "value" in state else make())
            return super().step(closure)

    return Remembering


def train(folder: Path, optimizer_class: type, *callbacks: Any, stop: int | None = None) -> Any:
    class Optimized(RegressionModule):
        def configure_optimizers(self) -> Any:
            return optimizer_class(self.parameters(), lr=0.1, momentum=0.9)  # type: ignore[attr-defined]

    def interrupt(step: int) -> None:
        if step == stop:
            raise RuntimeError("interrupted")

    recovery = CheckpointRecovery(folder, every_n_train_steps=2, async_save=False)
    trainer = make_trainer(callbacks=[BatchEndCallback(interrupt), *callbacks, recovery])
    trainer.fit(make_module(kind=Optimized), resumable(make_loader()), ckpt_path=recovery.latest_checkpoint())
    return trainer


@pytest.mark.parametrize(("make", "change"), STATES.values(), ids=STATES.keys())
def test_python_values_in_the_state_of_an_optimizer_are_restored(make: Any, change: Any, tmp_path: Path):
    optimizer_class = make_optimizer_class(make, change)
    whole = train(tmp_path / "whole", optimizer_class)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(tmp_path / "killed", optimizer_class, stop=5)
    resumed = train(tmp_path / "killed", optimizer_class)
    states = [[*trainer.optimizers[0].state.values()] for trainer in (whole, resumed)]
    assert [_describe(state["value"]) for state in states[0]] == [_describe(state["value"]) for state in states[1]]
    assert [type(state["value"]) for state in states[0]] == [type(state["value"]) for state in states[1]]
    assert all(
        torch.equal(*pair) for pair in zip(*([s["momentum_buffer"] for s in state] for state in states), strict=True)
    )


def test_a_value_that_cannot_be_pickled_is_announced_and_does_not_end_the_run(tmp_path: Path):
    optimizer_class = make_optimizer_class(threading.Lock, lambda value: value)
    with pytest.warns(
        match=r"A resume will not be exact: checkpoints omit optimizer_states/0/state/0/value: _thread.lock"
    ) as log:
        train(tmp_path / "first", optimizer_class)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")  # this process refuses another fit in the first
    assert sum("will not be exact" in str(record.message) for record in log) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert train(tmp_path / "copy", optimizer_class).global_step == 6


class Counting(pl.Callback):
    count = Fraction(0)

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


def test_the_state_of_a_callback_is_restored(tmp_path: Path):
    with pytest.raises(RuntimeError, match="interrupted"):
        train(tmp_path, torch.optim.SGD, Counting(), stop=5)
    train(tmp_path, torch.optim.SGD, callback := Counting())
    assert callback.count == 6


def make_trainer_stub() -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))


class Shell:
    """Calls a function when it is loaded."""

    def __reduce__(self) -> Any:
        return os.getpid, ()


@pytest.mark.parametrize(
    "value",
    [Shell(), print, torch.load, torch.nn.Linear(1, 1), threading.Thread],
    ids=["object", "builtin", "function", "module", "class"],
)
def test_functions_and_foreign_classes_are_not_loaded(value: Any):
    content = pickle.dumps({("callbacks",): value})
    saved = {"bytes": torch.frombuffer(bytearray(content), dtype=torch.uint8), "tensors": []}
    with pytest.raises(pickle.UnpicklingError, match="may execute code"):
        refused_state.restore(make_trainer_stub(), {"stormproof": {"refused": saved}})


def test_a_state_that_belongs_to_no_parameter_is_restored(tmp_path: Path):
    class Counted(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state["steps"] = self.state.get("steps", 0) + 1
            return super().step(closure)

    with pytest.raises(RuntimeError, match="interrupted"):
        train(tmp_path, Counted, stop=5)
    assert train(tmp_path, Counted).optimizers[0].state["steps"] == 6


class NestedModule(RegressionModule):
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.value = self.value * 2


def _fit_nested(folder: Path, layout: torch.layout, *, persistent: bool = False, stop: int | None = None) -> Any:
    def interrupt(step: int) -> None:
        if step == stop:
            raise RuntimeError("interrupted")

    recovery = CheckpointRecovery(folder, every_n_train_steps=2, async_save=False)
    trainer = make_trainer(callbacks=[BatchEndCallback(interrupt), recovery], max_steps=6)
    module = make_module(kind=NestedModule)
    value = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=layout)
    module.register_buffer("value", value, persistent=persistent)
    trainer.fit(module, resumable(make_loader()), ckpt_path=recovery.latest_checkpoint())
    return module.value


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_buffer_is_restored(layout: torch.layout, tmp_path: Path):
    with pytest.raises(RuntimeError, match="interrupted"):
        _fit_nested(tmp_path, layout, stop=5)
    resumed = _fit_nested(tmp_path, layout)
    assert resumed.is_nested
    assert resumed.layout is layout
    assert [part.tolist() for part in resumed.unbind()] == [[64, 64], [0, 0, 0]]


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_in_the_state_dict_is_refused_at_the_start(layout: torch.layout, tmp_path: Path):
    with pytest.raises(
        NotResumableError, match=r"state_dict/value: nested tensor \(of a buffer: pass persistent=False"
    ):
        _fit_nested(tmp_path, layout, persistent=True)


def test_nested_tensors_with_the_same_offsets_share_them_after_a_resume():
    first = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=torch.jagged)
    saved = refused_state._pickle(make_trainer_stub(), Layout(), {("optimizer_states",): [first, first + 1]})
    restored = refused_state._Unpickler(saved, torch.device("cpu")).load()["optimizer_states",]
    assert torch.equal((restored[0] + restored[1]).values(), torch.tensor([3.0, 3, 1, 1, 1]))


class Labelled(torch.Tensor): ...


class LabelledModule(RegressionModule):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.trainer._logger_connector._callback_metrics["loss"] = loss.detach().as_subclass(Labelled)
        return loss


def test_a_logged_tensor_of_a_subclass_is_saved_as_a_plain_one(tmp_path: Path):
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        make_trainer(callbacks=[CheckpointRecovery(tmp_path)], max_steps=2).fit(
            make_module(kind=LabelledModule), resumable(make_loader())
        )
    assert not [record for record in records if "exact" in str(record.message)]
    metrics = torch.load(max(tmp_path.glob("*.ckpt")))["stormproof"]["ranks"][0]["logged"]["metrics"]
    assert type(metrics["_callback_metrics"]["loss"]) is torch.Tensor

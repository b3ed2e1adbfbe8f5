"""Recorded variables of the program."""

from itertools import pairwise
from pathlib import Path

from tests.support import hostile_objects
from tests.support.recorded_program import record

PROGRAM = """
import argparse, time, torch
from types import SimpleNamespace
from pathlib import Path

class Stopper:
    def __init__(self):
        self.best, self.counter, self.history = None, 0, []
        self.nested = SimpleNamespace(level=1)

def train(options):
    stopper = Stopper()
    alpha = torch.zeros(())
    start_time, start_epoch = time.time(), 0
    folder, label = "runs/1", "x" * 300
    path, function, big = Path("a"), print, torch.zeros(100)
    for step in range(2):
        loss = model(torch.ones(1, 1)).sum()
        loss.backward()
        optimizer.step()
        stopper.counter += 1
        stopper.history.append(0.5)
        alpha += 0.25

seen = {"samples": 0}
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
train(argparse.Namespace(lr=0.1))
"""


def test_small_variables_of_the_user_are_recorded(tmp_path: Path) -> None:
    ledger = record(tmp_path / "run", PROGRAM)

    values = {name.removeprefix("variables/"): text for name, text in ledger.steps[1].values.items()}
    assert values == {
        "Namespace.lr": "0.1",
        "SimpleNamespace.level": "1",
        "Stopper.best": "None",
        "Stopper.counter": "1",
        "Stopper.history": "[0.5]",
        "train.alpha": "0.25",
        "train.start_epoch": "0",
        "train.step": "1",
        "train.seen": "{'samples': 0}",
    }
    assert {f"variables/{name}" for name in values} <= set(ledger.steps[1].components)


def test_an_order_of_many_samples_is_recorded_without_its_text(tmp_path: Path) -> None:
    source = """
        import random, torch
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        order, permutation, losses = list(range(1000)), (torch.arange(1000), torch.ones(2)), [0.5] * 1000

        for step in range(3):
            if step == 1:
                random.shuffle(order)
            if step == 2:
                permutation = permutation[0].flip(0), permutation[1]
            optimizer.step()
    """
    steps = record(tmp_path / "run", source).steps

    recorded = {name: [step.components[name] for step in steps] for name in steps[0].components if "train." in name}
    changed = {name: [first != second for first, second in pairwise(values)] for name, values in recorded.items()}
    del changed["variables/train.step"]
    assert changed == {"variables/train.order": [True, False], "variables/train.permutation": [False, True]}
    assert steps[0].values.keys() == {"variables/train.step"}


def test_recorder_does_not_keep_tensors_alive(tmp_path: Path) -> None:
    source = """
        import torch, weakref

        def train():
            model = torch.nn.Linear(1, 1)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for step in range(2):
                x = torch.ones(1, 1)
                reference = weakref.ref(x)
                model(x).sum().backward()
                optimizer.step()
                del x
                assert reference() is None
            return weakref.ref(model)

        assert train()() is None
    """
    assert len(record(tmp_path / "run", source).steps) == 2


HOSTILE_PROGRAM = """
import os, sys, torch
sys.path.insert(0, os.getcwd())
from hostile_objects import HOSTILE_OBJECTS, RaisingMethods

class Batch:
    def __init__(self, samples):
        self.samples, self.hostile = torch.stack(samples), [make() for make in HOSTILE_OBJECTS.values()]

class Optimizer(torch.optim.SGD):
    __eq__, __hash__ = RaisingMethods.__eq__, None

class Owner:
    def __init__(self):
        for number, make in enumerate(HOSTILE_OBJECTS.values()):
            setattr(self, f"hostile_{number}", make())
        self.counter = 0

def train(owner):
    hostile_locals = [make() for make in HOSTILE_OBJECTS.values()]
    for batch in torch.utils.data.DataLoader(torch.ones(3, 1), collate_fn=Batch):
        model(batch.samples).sum().backward()
        optimizer.step()
        owner.counter += 1

globals().update({f"hostile_{number}": make() for number, make in enumerate(HOSTILE_OBJECTS.values())})
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(1, 1))
model.extend(make() for name, make in HOSTILE_OBJECTS.items() if name == "RaisingModule")
model.forward = lambda samples: model[0](samples)
optimizer = Optimizer(model.parameters(), 0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
schedule.hostile = [make() for make in HOSTILE_OBJECTS.values()]
train(Owner())
torch.save({"model": model[0].state_dict()}, "last.pt")
"""


def test_objects_that_answer_every_name_or_raise_do_not_stop_the_recorder(tmp_path: Path) -> None:
    source = Path(hostile_objects.__file__).read_text()
    ledgers = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hostile_objects.py").write_text(source)
        ledgers.append(record(tmp_path / name, HOSTILE_PROGRAM))

    steps = [[_drop_generators(step.components) for step in ledger.steps] for ledger in ledgers]
    assert len(steps[0]) == 3
    assert steps[0] == steps[1], "the values of such objects depend on the process"
    assert [step.values["variables/Owner.counter"] for step in ledgers[0].steps] == ["0", "1", "2"]


def _drop_generators(components: dict[str, object]) -> dict[str, object]:
    """The program seeds only the generator of torch."""
    return {name: value for name, value in components.items() if not name.startswith("rng/")}

"""Recorded variables of the program."""

from itertools import pairwise
from pathlib import Path

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

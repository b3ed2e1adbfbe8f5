"""The recorder in programs of plain PyTorch."""

from pathlib import Path

import pytest
import torch

from stormproof.replay.ledger import Step
from tests.support.recorded_program import record, run

TRAINING = """
    import copy, os, random
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    def evaluate(model, loader):
        model.eval()
        with torch.no_grad():
            return sum(model(x).sum().item() for (x,) in loader)

    def main():
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1)
        model = torch.nn.Sequential(*layers)
        average = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        data = TensorDataset(torch.randn(12, 4))
        validation = DataLoader(data, batch_size=6)
        first, best = 0, None
        if os.path.exists("last.pt"):
            state = torch.load("last.pt", weights_only=False)
            for name, part in dict(model=model, average=average, optimizer=optimizer, scheduler=scheduler).items():
                part.load_state_dict(state[name])
            first, best = state["epoch"], state["best"]
            torch.set_rng_state(state["rng"])
        for epoch in range(first, int(os.environ.get("EPOCHS", 3))):
            model.train()
            loader = DataLoader(data, batch_size=4, shuffle=True)
            for (x,) in loader:
                loss = model(x).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for old, new in zip(average.parameters(), model.parameters()):
                        old.lerp_(new, 0.1)
            scheduler.step()
            score = evaluate(model, validation)
            best = score if best is None else max(best, score)
            state = dict(model=model.state_dict(), average=average.state_dict(), optimizer=optimizer.state_dict(),
                scheduler=scheduler.state_dict(), epoch=epoch + 1, best=best, rng=torch.get_rng_state())
            torch.save(state, "last.tmp")
            os.replace("last.tmp", "last.pt")
        torch.save(model.state_dict(), "final.pt")

    main()
"""

STATE = {
    "parameters", "optimizer/AdamW", "scheduler/StepLR", "learning_rate", "hyperparameters", "buffers", "averaged",
    "frozen", "mode", "rng/python", "rng/numpy", "rng/torch",
}  # fmt: skip


def select(step: Step, *ignored: str) -> dict:
    return {name: value for name, value in step.components.items() if name not in ignored}


def test_all_components_of_a_training_run_are_recorded(tmp_path: Path) -> None:
    ledger = record(tmp_path / "run", TRAINING)

    assert len(ledger.steps) == 9
    step = ledger.steps[4]
    plain = {name for name in step.components if not name.startswith("variables/")}
    assert plain == STATE | {"data/indices", "data/batches", "data/count", "loss", "gradients"}
    assert step.components["data/count"] == 1
    assert step.components["learning_rate"] == "[0.05]"
    assert step.values.items() >= {"variables/main.epoch": "1", "variables/main.first": "0"}.items()
    assert [before.n for before in ledger.before] == [1, 2, 3]
    assert [set(before.components) for before in ledger.before[1:]] == [STATE - {"buffers"}] * 2
    variables = {f"variables/main.{name}" for name in ("epoch", "first", "best", "x")}
    assert set(ledger.before[0].components) == STATE | variables
    for name in ("parameters", "optimizer/AdamW", "buffers"):
        values = [step.components[name] for step in ledger.steps]
        assert len(set(values)) >= 8, name  # `buffers` change before the step
        assert name == "buffers" or ledger.before[1].components[name] == values[0]
    assert ledger.epochs == ledger.validations == (3, 6, 9)
    assert [(Path(save.path).name, save.phase, save.after_step) for save in ledger.saves[:3]] == [
        ("last.tmp", "open", 3),
        ("last.tmp", "close", 3),
        ("last.pt", "replace", 3),
    ]
    assert ledger.loads == ()


def test_recorder_does_not_change_the_result(tmp_path: Path) -> None:
    record(tmp_path / "recorded", TRAINING)
    run(tmp_path / "plain", TRAINING, {})

    first, second = (torch.load(tmp_path / name / "final.pt") for name in ("recorded", "plain"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resumed_run_has_the_components_of_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = record(tmp_path / "uninterrupted", TRAINING)
    monkeypatch.setenv("EPOCHS", "2")
    record(tmp_path / "run", TRAINING)
    monkeypatch.delenv("EPOCHS")

    resumed = record(tmp_path / "run", TRAINING)

    assert [Path(load.path).name for load in resumed.loads] == ["last.pt"]
    ignored = ("variables/main.first", "variables/main.name", "variables/main.score")  # differ or not yet assigned
    assert [select(step, *ignored) for step in resumed.steps] == [
        select(step, *ignored) for step in uninterrupted.steps[6:]
    ]
    expected = uninterrupted.steps[5].components
    unchanged = ("parameters", "optimizer/AdamW", "rng/python", "rng/numpy")
    assert {name: resumed.before[0].components[name] for name in unchanged} == {
        name: expected[name] for name in unchanged
    }


def test_buffers_before_the_first_step_are_read_before_the_forward_pass(tmp_path: Path) -> None:
    source = """
        import torch
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with torch.no_grad():
            model.eval()(torch.ones(4, 2))
        model.train()
        for _ in range(2):
            {extra}
            model(torch.ones(4, 2)).sum().backward()
            optimizer.step()
    """
    once = record(tmp_path / "once", source.format(extra="pass"))
    twice = record(tmp_path / "twice", source.format(extra="model(torch.zeros(4, 2))"))

    assert once.before[0].components["buffers"] == twice.before[0].components["buffers"]
    assert once.before[0].components["buffers"] != once.steps[0].components["buffers"]
    assert ["buffers" in before.components for before in once.before] == [True, False]


def test_unsampled_steps_have_only_cheap_components(tmp_path: Path) -> None:
    source = """
        import torch
        weight = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(weight.parameters(), 0.1)
        for x, in torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(25, 1))):
            weight(x).sum().backward()
            optimizer.step()
    """
    ledger = record(tmp_path / "run", source, every=10)

    assert [step.n for step in ledger.steps if step.hashed] == [*range(1, 11), 20]
    assert set(ledger.steps[10].components) == {"data/count", "learning_rate", "loss"}
    assert len(ledger.steps[19].batches) == len(ledger.steps[19].indices) == 1

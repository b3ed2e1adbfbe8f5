"""Recorded optimizer steps: several optimizers, accumulation, scalers, closures, subclasses."""

from pathlib import Path

from tests.support.recorded_program import record

PREAMBLE = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
loader = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=2)
"""


def test_batches_belong_to_the_first_optimizer_that_follows(tmp_path: Path) -> None:
    ledger = record(
        tmp_path / "run",
        PREAMBLE
        + """
critic = torch.nn.Linear(2, 1)
first, second = torch.optim.Adam(critic.parameters(), 0.1), torch.optim.Adam(model.parameters(), 0.2)
for x, in loader:
    for optimizer, network in ((first, critic), (second, model)):
        optimizer.zero_grad()
        network(x).mean().backward()
        optimizer.step()
""",
    )

    assert [(step.n, step.optimizer, len(step.batches)) for step in ledger.steps[:4]] == [
        (1, 0, 1), (2, 1, 0), (3, 0, 1), (4, 1, 0),
    ]  # fmt: skip
    assert [step.components["learning_rate"] for step in ledger.steps[:2]] == ["[0.1]", "[0.2]"]
    assert [before.optimizer for before in ledger.before] == [0, 1, 0]
    assert ledger.steps[0].components["parameters"] != ledger.steps[1].components["parameters"]


def test_accumulated_batches_are_counted(tmp_path: Path) -> None:
    ledger = record(
        tmp_path / "run",
        PREAMBLE
        + """
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for i, (x,) in enumerate(loader):
    model(x).mean().backward()
    if i % 2:
        optimizer.step()
""",
    )

    assert [step.components["data/count"] for step in ledger.steps] == [2, 2]
    assert [len(step.indices) for step in ledger.steps] == [2, 2]


def test_step_that_the_scaler_skips_is_not_a_step(tmp_path: Path) -> None:
    ledger = record(
        tmp_path / "run",
        PREAMBLE
        + """
optimizer = torch.optim.SGD(model.parameters(), 0.1)
scaler = torch.amp.GradScaler("cpu")
for i, (x,) in enumerate(loader):
    optimizer.zero_grad()
    scaler.scale(model(x).mean() * (float("inf") if i == 1 else 1)).backward()
    scaler.step(optimizer)
    scaler.update()
""",
    )

    assert [step.components["data/count"] for step in ledger.steps] == [1, 2, 1]
    scales = [step.components["scaler"] for step in ledger.steps]
    assert scales[0] != scales[1]


def test_gradients_and_loss_of_a_closure_are_recorded(tmp_path: Path) -> None:
    ledger = record(
        tmp_path / "run",
        PREAMBLE
        + """
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
for x, in loader:
    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss
    optimizer.step(closure)
""",
    )

    assert len(ledger.steps) == 4
    for name in ("gradients", "loss", "parameters", "optimizer/LBFGS"):
        assert len({step.components[name] for step in ledger.steps}) == 4, name


def test_step_of_a_subclass_counts_once(tmp_path: Path) -> None:
    ledger = record(
        tmp_path / "run",
        PREAMBLE
        + """
class Clipped(torch.optim.SGD):
    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return super().step(closure)

torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 0.1)  # hooks SGD.step too
optimizer = Clipped(model.parameters(), 0.1)
for x, in loader:
    model(x).mean().backward()
    optimizer.step()
""",
    )

    assert [step.n for step in ledger.steps] == [1, 2, 3, 4]
    assert ledger.steps[0].components["gradients"]


def test_frozen_parameters_and_modes_are_recorded(tmp_path: Path) -> None:
    ledger = record(
        tmp_path / "run",
        PREAMBLE
        + """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.warmup = torch.nn.Dropout(), model, 3
    def forward(self, x):
        return self.head(self.body(x))

net = Net()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for i, (x,) in enumerate(loader):
    net(x).mean().backward()
    optimizer.step()
    if i == 0: model.bias.requires_grad_(False)
    if i == 1: net.body.eval()
    if i == 2: net.warmup = 4; optimizer.param_groups[0]["momentum"] = 0.9
""",
    )

    def changes(name: str) -> list[int]:
        values = [step.components[name] for step in ledger.steps]
        return [i for i in range(1, 4) if values[i] != values[i - 1]]

    assert {name: changes(name) for name in ("frozen", "mode", "hyperparameters", "variables/Net.warmup")} == {
        "frozen": [1], "mode": [2], "hyperparameters": [3], "variables/Net.warmup": [3],
    }  # fmt: skip
    assert ledger.steps[3].values["variables/Net.warmup"] == "4"


def test_averages_of_parameters_are_recorded(tmp_path: Path) -> None:
    program = (
        PREAMBLE
        + """
{create}
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x, in loader:
    model(x).mean().backward()
    optimizer.step()
    {update}
"""
    )
    cases = {
        "swa": ("average = torch.optim.swa_utils.AveragedModel(model)", "average.update_parameters(model)"),
        "list": (
            "shadow = [p.detach().clone() for p in model.parameters()]",
            "torch._foreach_add_(shadow, list(model.parameters()))",
        ),
        "dict": (
            "shadow = {n: p.clone() for n, p in model.state_dict().items()}",
            "shadow['bias'] += 1; parameters = list(model.parameters())",
        ),
    }
    for name, (create, update) in cases.items():
        ledger = record(
            tmp_path / name, program.replace("{create}", create).replace("{update}", f"with torch.no_grad(): {update}")
        )
        assert len({step.components["averaged"] for step in ledger.steps}) == 4, name
    ledger = record(
        tmp_path / "none", program.replace("{create}", "").replace("{update}", "copy = list(model.parameters())")
    )
    assert all("averaged" not in step.components for step in ledger.steps)

"""Recorded batches, indices, random generators and workers."""

from pathlib import Path

from tests.support.recorded_program import record

PROGRAM = """
import random, torch
import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset

class Squares(Dataset):
    def __init__(self):
        self.epoch, self.generator = 0, np.random.default_rng(0)
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return {{"x": torch.full((2,), float(index)), "name": str(index)}}

class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(8.0).view(4, 2))

def main():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    {loader}
    for epoch in range(2):
        for batch in loader:
            x = batch["x"] if isinstance(batch, dict) else batch
            model(x).mean().backward()
            optimizer.step()

main()
"""


def test_workers_do_not_change_the_recorded_order(tmp_path: Path) -> None:
    arguments = "Squares(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1)"
    plain = record(tmp_path / "plain", PROGRAM.format(loader=f"loader = DataLoader({arguments})"))
    options = "num_workers=2, persistent_workers=True, multiprocessing_context='fork'"
    workers = record(tmp_path / "workers", PROGRAM.format(loader=f"loader = DataLoader({arguments}, {options})"))

    assert len(plain.steps) == 8
    # persistent workers draw one seed less from the generator in the second epoch
    assert [step.batches for step in plain.steps[:4]] == [step.batches for step in workers.steps[:4]]
    assert [step.indices for step in plain.steps[:4]] == [step.indices for step in workers.steps[:4]]
    assert [step.components["data/count"] for step in workers.steps] == [1] * 8
    assert all(len(step.indices) == 1 for step in workers.steps)
    assert "rng/workers" in workers.steps[0].components
    assert "rng/workers" not in plain.steps[0].components
    assert len({step.components["rng/generators/torch"] for step in plain.steps}) == 2  # one shuffle each epoch
    assert plain.epochs == workers.epochs == (4, 8)
    assert plain.steps[0].values["variables/Squares.epoch"] == "0"


def test_iterable_data_has_batches_without_indices(tmp_path: Path) -> None:
    ledger = record(tmp_path / "run", PROGRAM.format(loader="loader = DataLoader(Stream(), batch_size=2)"))

    assert [len(step.batches) for step in ledger.steps] == [1, 1, 1, 1]
    assert all("data/indices" not in step.components for step in ledger.steps)


def test_each_generator_is_a_component(tmp_path: Path) -> None:
    source = """
        import random, torch
        import numpy as np
        own = np.random.default_rng(3)
        for_torch, for_python = torch.Generator(), random.Random(1)
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        draws = [
            lambda: None, random.random, np.random.rand, lambda: torch.rand(1), for_python.random, own.random,
            lambda: torch.rand(1, generator=for_torch),
        ]
        for draw in draws:
            draw()
            optimizer.step()
    """
    ledger = record(tmp_path / "run", source)

    own = [f"rng/generators/{library}" for library in ("python", "numpy", "torch")]
    names = ("rng/python", "rng/numpy", "rng/torch", *own)
    for i, name in enumerate(names, start=1):
        values = [step.components[name] for step in ledger.steps]
        assert [n for n in range(1, 7) if values[n] != values[n - 1]] == [i], name


def test_validation_without_no_grad_around_the_loop_is_not_training_data(tmp_path: Path) -> None:
    source = """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        data = TensorDataset(torch.ones(4, 1))
        training, validation = DataLoader(data, batch_size=2), DataLoader(data)
        for _ in range(2):
            model.train()
            for x, in training:
                model(x).sum().backward()
                optimizer.step()
            model.eval()
            for x, in validation:
                with torch.no_grad():
                    model(x)
    """
    ledger = record(tmp_path / "run", source)

    assert [step.components["data/count"] for step in ledger.steps] == [1, 1, 1, 1]
    assert ledger.validations == (2, 4)
    assert ledger.epochs == (2, 4)

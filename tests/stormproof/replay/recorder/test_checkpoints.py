"""Recorded saves and loads."""

import importlib
from pathlib import Path

import pytest

from stormproof.replay.ledger import ProcessLedger
from tests.support.recorded_program import record

PREAMBLE = """
import io, os, pickle, shutil, torch
import numpy as np
state = {"weight": torch.ones(2)}
"""


def list_saves(ledger: ProcessLedger) -> list[tuple[str, str]]:
    return [(Path(save.path).name, save.phase) for save in ledger.saves]


def list_loads(ledger: ProcessLedger) -> list[str]:
    return [Path(load.path).name for load in ledger.loads]


SAVES = {
    "path": "torch.save(state, 'a.pt'); torch.load('a.pt')",
    "file": """
with open('a.pt', 'wb') as f: torch.save(state, f)
with open('a.pt', 'rb') as f: torch.load(f)
""",
    "pickle": """
with open('a.pt', 'wb') as f: pickle.dump(state, f)
with open('a.pt', 'rb') as f: pickle.load(f)
""",
    "buffer": """
buffer = io.BytesIO(); torch.save(state, buffer)
with open('a.pt', 'wb') as f: f.write(buffer.getvalue())
with open('a.pt', 'rb') as f: buffer = io.BytesIO(f.read())
torch.load(buffer)
""",
    "numpy": "np.savez('b', w=np.ones(2)); os.rename('b.npz', 'a.pt'); np.load('a.pt')",
    "move": "torch.save(state, '../b.pt'); shutil.move('../b.pt', 'a.pt'); torch.load('a.pt')",
    "folder": """
os.mkdir('b'); torch.save(state, 'b/a.pt'); os.rename('b', 'checkpoint')
os.symlink('checkpoint', 'latest'); torch.load('latest/a.pt')
""",
}


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        *((name, ["open", "close"]) for name in ("path", "file", "pickle", "buffer")),
        *((name, ["replace"]) for name in ("numpy", "move")),
        ("folder", ["open", "close", "replace"]),
    ],
)
def test_saves_and_loads_are_recorded(tmp_path: Path, name: str, phases: list[str]) -> None:
    ledger = record(tmp_path / "run", PREAMBLE + SAVES[name])

    assert [save.phase for save in ledger.saves if Path(save.path).name == "a.pt"] == phases
    assert list_loads(ledger) == ["a.pt"]
    assert ledger.loads[0].path == ledger.saves[-1].path


def test_files_without_tensors_or_outside_the_root_are_no_checkpoints(tmp_path: Path) -> None:
    source = """
torch.save(state, "../outside.pt")
torch.load("../outside.pt")
open("log", "wb").close(); open("log", "rb").close()
buffer = io.BytesIO(); torch.save(state, buffer); buffer.seek(0); torch.load(buffer)
with open("metrics.pkl", "wb") as f: pickle.dump({"loss": 0.5}, f)
with open("metrics.pkl", "rb") as f: pickle.load(f)
torch.save(state, "a.pt")
"""
    ledger = record(tmp_path / "run", PREAMBLE + source)

    # a file that is opened after a save to memory may receive it
    assert list_saves(ledger) == [("metrics.pkl", "open"), ("a.pt", "open"), ("a.pt", "close")]
    assert list_loads(ledger) == []


def test_failed_load_is_not_a_load(tmp_path: Path) -> None:
    source = """
torch.save(state, "a.pt")
os.truncate("a.pt", 100)
try: torch.load("a.pt")
except Exception: pass
"""
    assert record(tmp_path / "run", PREAMBLE + source).loads == ()


@pytest.mark.parametrize("is_imported", [False, True])
def test_folder_of_a_distributed_checkpoint_is_one_checkpoint(is_imported: bool, tmp_path: Path) -> None:
    if is_imported:
        importlib.import_module("torch.distributed.checkpoint")
    source = """
import warnings
warnings.simplefilter("ignore")
import torch.distributed.checkpoint as dcp
dcp.save(state, checkpoint_id="checkpoint")
dcp.load(state, checkpoint_id="checkpoint")
"""
    ledger = record(tmp_path / "run", PREAMBLE + source)

    assert [save for save in list_saves(ledger) if save[0] == "checkpoint"] == [
        ("checkpoint", "open"), ("checkpoint", "close"),
    ]  # fmt: skip
    assert list_loads(ledger) == ["checkpoint"]


def test_the_step_that_creates_an_optimizer_state_to_load_into_is_not_recorded(tmp_path: Path) -> None:
    source = """
        import torch
        from torch.distributed.checkpoint.state_dict import get_state_dict
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.Adam(model.parameters())
        get_state_dict(model, optimizer)
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    """
    ledger = record(tmp_path / "run", source)

    assert [step.n for step in ledger.steps] == [1]
    assert ledger.steps[0].components["learning_rate"] == "[0.001]"

"""The recorder in real processes, by environment variables only."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stormproof.replay.ledger import BOOTSTRAP_FOLDER, FOLDER_VARIABLE, ROOT_VARIABLE, read_ledgers

TRAINING = """
    import gc, os, sys
    import torch
    import torch.distributed as dist

    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    network = torch.nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = torch.utils.data.TensorDataset(torch.arange(8.0).view(4, 2))
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=ranks, rank=int(os.environ.get("RANK", 0)))
    for x, in torch.utils.data.DataLoader(data, sampler=sampler):
        network(x).mean().backward()
        optimizer.step()
    if ranks > 1:
        del network
        gc.collect()  # a group that the network still refers to may abort the process when the interpreter ends
        dist.destroy_process_group()
    if "fail" in sys.argv:
        raise ValueError
"""


def test_a_module_is_hooked_although_the_program_asked_for_its_spec_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Packages ask whether torch is installed before they import it."""
    monkeypatch.syspath_prepend(BOOTSTRAP_FOLDER)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hooked_module.py").touch()
    finder = importlib.import_module("_stormproof_import_hook").PostImportFinder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    imported = []
    finder.call_after_import("hooked_module", imported.append)
    assert importlib.util.find_spec("hooked_module") is not None
    assert imported == []
    module = importlib.import_module("hooked_module")
    assert imported == [module]


def run(folder: Path, *command: str, python_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command in ``folder`` with the recorder."""
    path = os.pathsep.join(str(entry) for entry in (BOOTSTRAP_FOLDER, python_path) if entry)
    variables = {FOLDER_VARIABLE: str(folder / "ledgers"), ROOT_VARIABLE: str(folder), "PYTHONPATH": path}
    return subprocess.run(
        command, check=False, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=100
    )


def test_process_without_torch_is_unchanged(tmp_path: Path) -> None:
    """The other sitecustomize runs, and no further module is imported."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("started = True")
    source = """
import sys
names = set(sys.modules)
import sitecustomize
assert sitecustomize.started
print(*sorted(name for name in names if name in {"importlib.util", "typing", "stormproof", "json", "inspect"}))
"""

    result = run(tmp_path, sys.executable, "-c", source, python_path=tmp_path / "own")

    environment = os.environ | {"PYTHONPATH": str(tmp_path / "own")}
    plain = subprocess.check_output([sys.executable, "-c", source], env=environment, text=True)
    assert (result.stdout, result.stderr) == (plain, "")
    assert not (tmp_path / "ledgers").exists()


@pytest.mark.slow
def test_environment_with_another_version_of_stormproof_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAINING))
    blocked = tmp_path / "blocked"
    (blocked / "stormproof").mkdir(parents=True)
    (blocked / "stormproof" / "__init__.py").write_text("version = 'another version, without replay'")

    result = run(tmp_path, sys.executable, "train.py", "fail", python_path=blocked)

    assert "ValueError" in result.stderr
    (ledger,) = read_ledgers(tmp_path / "ledgers")[0]
    assert (len(ledger.steps), ledger.errors) == (4, ())
    assert ledger.end is not None
    assert ledger.end.exit == 1
    assert ledger.start.argv == ("train.py", "fail")
    assert ledger.steps[0].values.get("variables/train.ranks") == "1"


@pytest.mark.slow
def test_each_rank_writes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAINING))

    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    result = run(tmp_path, *launcher, "train.py")

    assert result.returncode == 0, result.stderr
    ledgers = read_ledgers(tmp_path / "ledgers")
    assert {rank: len(processes) for rank, processes in ledgers.items()} == {0: 1, 1: 1}
    (first,), (second,) = ledgers[0], ledgers[1]
    assert first.start.world_size == second.start.world_size == 2
    assert not first.errors + second.errors
    for one, other in zip(first.steps, second.steps, strict=True):
        assert one.components["parameters"] == other.components["parameters"]
        assert one.components["data/indices"] != other.components["data/indices"]

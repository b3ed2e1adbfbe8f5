import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from stormproof_train.errors import UserError
from stormproof_train.launch import as_launched, stop_torchruns_agent
from stormproof_train.targets import bind

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_PROCID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
ALONE = {"torchrun": {}, "salloc": {**SRUN, "SLURM_JOB_NAME": "interactive"}, "sbatch": {"SLURM_NTASKS": "8"}}


def trainer(**given: Any) -> Any:
    return bind({"_target_": "pytorch_lightning.Trainer", **given}, "trainer")


@pytest.mark.parametrize(("environ", "each", "nodes"), [(TORCHRUN, 2, 2), (SRUN, 4, 2)])
def test_an_open_number_is_the_launchers(environ: dict[str, str], each: int, nodes: int):
    found = as_launched(trainer(strategy="ddp", devices="auto"), environ).given
    assert (found["devices"], found["num_nodes"], found["strategy"]) == (each, nodes, "ddp")
    assert as_launched(trainer(devices=each, num_nodes=nodes), environ).given["devices"] == each


@pytest.mark.parametrize("environ", ALONE.values(), ids=ALONE.keys())
@pytest.mark.parametrize("devices", ["auto", 1, 2, [0, 1]])
def test_without_a_launcher_the_config_counts(environ: dict[str, str], devices: Any):
    given = trainer(devices=devices)
    assert as_launched(given, environ) is given


@pytest.mark.parametrize("given", [{}, {"devices": 2}, {"devices": "2", "num_nodes": 1}, {"devices": [0, 1, 2]}])
@pytest.mark.parametrize("environ", [TORCHRUN, SRUN])
def test_another_number_is_a_sentence_that_names_the_way_out(given: dict[str, Any], environ: dict[str, str]):
    with pytest.raises(UserError, match=r"the launcher started \d on each of 2 nodes, and .*: trainer=ddp takes"):
        as_launched(trainer(**given), environ)


@pytest.mark.parametrize("devices", [-1, "-1", "0,1"])
def test_what_only_lightning_can_read_is_left_to_it(devices: Any):
    given = trainer(devices=devices)
    assert as_launched(given, TORCHRUN) is given


AGENT = """
import os, sys, time
sys.path[:0] = {roots!r}
from stormproof_train.launch import stop_torchruns_agent

open({started!r}, "a").write("x")
stop_torchruns_agent()
time.sleep(60)  # until the agent, which is ending, kills this
"""


def test_torchrun_starts_nothing_again_that_says_so(tmp_path: Path):
    started, script = tmp_path / "started", tmp_path / "worker.py"
    roots = [str(ROOT / "src"), str(ROOT / "callbacks")]
    script.write_text(AGENT.format(roots=roots, started=str(started)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=5", str(script)]
    done = subprocess.run(launch, capture_output=True, timeout=100, check=False)
    assert done.returncode != 0
    assert started.read_text() == "x"


def test_without_torchrun_nobody_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "set by another launcher")
    monkeypatch.setattr("psutil.Process.cmdline", lambda process: ["bash"])
    monkeypatch.setattr("psutil.Process.terminate", lambda process: pytest.fail("it ended its parent"))
    stop_torchruns_agent()

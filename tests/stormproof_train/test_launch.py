import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from conftest import ROOT

from stormproof_train.errors import UserError
from stormproof_train.launch import accumulation, as_launched, share_steps, stop_torchruns_agent
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


@pytest.mark.parametrize(
    ("given", "ranks", "first", "batch_size", "expected"),
    [
        (1, 2, None, 64, 1),
        (1, 1, (2, 1), 64, 2),
        (2, 2, (4, 2), 64, 4),
        (4, 2, (2, 1), 64, 4),  # the same ranks: as the config has it
        (1, 2, (1, 1), 64, 1),  # a forward pass has fewer samples
        (1, 3, (8, 1), 48, 4),  # no more than six samples at once
        (1, 3, (4, 1), 64, 1),  # the data says that these cannot share the batch
        (1, 1, (2, 1), None, 2),
        (1, 3, (2, 1), None, 1),
    ],
)
def test_fewer_ranks_take_more_batches_for_a_step(
    given: int, ranks: int, first: tuple[int, int] | None, batch_size: int | None, expected: int
):
    assert accumulation(given, ranks, first, batch_size) == expected


def quiet(**options: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


def test_what_is_counted_in_batches_goes_along():
    alone = quiet(limit_train_batches=10, val_check_interval=5, limit_val_batches=3)
    share_steps(alone, (2, 1), 64)
    counted = (alone.accumulate_grad_batches, alone.limit_train_batches, alone.val_check_interval)
    assert (*counted, alone.limit_val_batches) == (2, 20, 10, 3)


def test_shares_of_an_epoch_stay():
    alone = quiet(limit_train_batches=0.5)
    share_steps(alone, (2, 1), 64)
    assert (alone.limit_train_batches, alone.val_check_interval) == (0.5, 1.0)


def test_a_limit_that_is_no_whole_number_of_batches_any_more_is_a_sentence():
    with pytest.raises(
        UserError, match=r"val_check_interval=5, .* for 1 ranks, which take 3 a step: start as many ranks"
    ):
        share_steps(quiet(accumulate_grad_batches=2, val_check_interval=5), (3, 1), 12)


def test_a_schedule_of_accumulation_decides_by_itself():
    scheduled = quiet(callbacks=[pl.callbacks.GradientAccumulationScheduler({0: 4})])
    share_steps(scheduled, (1, 4), 64)
    assert scheduled.accumulate_grad_batches == 1


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

"""Runs that are killed, through the real command line: the same command goes on, and ends as if nothing had been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import Store
from stormproof_train.initialization.checkpoint import read_checkpoint
from stormproof_train.run.metrics_rows import read_metrics
from tests.support.cases import mark_cases
from tests.support.forked_command import ROOT, Command

pytestmark = pytest.mark.slow

FAULTS = """
import json, os
from stormproof.testing import FaultInjector

def faults():
    ordered = json.loads(os.environ.get("FAULT", "null"))
    return FaultInjector().kill(**ordered) if ordered else FaultInjector()
"""
SIGNALS = """
import psutil
from stormproof.testing import FaultInjector

class Told(FaultInjector):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 33 and not self.resumed:
            processes = psutil.Process().children(recursive=True)
            assert "wandb-core" in [each.name() for each in processes]
            for each in [*processes, psutil.Process()]:
                each.terminate()

    def on_train_start(self, trainer, *args):
        self.resumed = trainer.global_step > 0

faults = Told
"""
OVERRIDES = (
    "callbacks.faults._target_=mine.faults", "callbacks.recovery.every_n_train_steps=7", "trainer.max_epochs=5",
    "model.dropout=0.2", "model.norm=batch", "scheduler=plateau", "name=run",
    "callbacks.recovery.async_save=false",  # so that it is known what was committed when it was killed
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the command that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mine.py").write_text(FAULTS)
    overrides = [sys.executable, str(ROOT / "train.py"), *OVERRIDES, "logger=wandb"]
    subprocess.run(overrides, cwd=folder, check=True, capture_output=True, timeout=200)
    return folder / "runs"


@pytest.fixture
def killed(command: Command, tmp_path: Path):
    """Starts the command with a kill ordered, and checks that it died of it."""
    (tmp_path / "mine.py").write_text(FAULTS)

    def run(*overrides: str, **fault: object) -> subprocess.CompletedProcess[str]:
        result = command(*overrides, env={**os.environ, "FAULT": json.dumps(fault)})
        assert result.returncode == -9, result.stderr
        return result

    return run


def final_weights(runs: Path, name: str = "run") -> dict:
    """The last checkpoint of a run."""
    newest = Store(runs / name / "checkpoints").latest_checkpoint()
    assert newest is not None
    return read_checkpoint(newest.path)


def assert_same_end(run: Path, expected_run: Path) -> None:
    first, second = final_weights(run), final_weights(expected_run)
    assert first["global_step"] == second["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert repr(first[part]) == repr(second[part])
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())
    summaries = [json.loads((runs / "run" / "summary.json").read_text()) for runs in (run, expected_run)]
    changed = {"seconds", "attempts"}
    assert summaries[0].keys() == summaries[1].keys()
    assert all(summaries[0][key] == summaries[1][key] for key in summaries[0].keys() - changed)


def wandb_rows(folder: Path) -> list[list[dict]]:
    """The history of each attempt's file, in order."""
    histories = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        records = [json.loads(line) for line in result.stdout.splitlines()]
        histories.append([record["history"]["item"] for record in records if record["type"] == "history"])
    return histories


def test_the_same_command_goes_on_after_sigkills_and_ends_the_same_bit_for_bit(
    killed, command: Command, whole: Path, tmp_path: Path
):
    killed(*OVERRIDES, at="on_train_batch_end", step=33)
    killed(*OVERRIDES, at="on_validation_batch_start", step=60)
    killed(*OVERRIDES, at="manifest synced", step=70)
    result = command(*OVERRIDES)
    assert result.returncode == 0, result.stderr
    assert "resuming from step 63 (" in result.stdout
    assert_same_end(whole, tmp_path / "runs")
    folder = tmp_path / "runs" / "run"
    record = json.loads((folder / "run.json").read_text())
    attempts = record["attempts"]
    assert record["status"] == "finished"
    assert [(attempt["first_step"], attempt["last_step"]) for attempt in attempts] == [
        (0, 33),
        (28, 60),
        (56, 70),
        (63, 100),
    ]
    assert [attempt["reason"] for attempt in attempts] == ["it was killed"] * 3 + [None]
    assert all(attempt["end"] >= attempt["start"] for attempt in attempts)
    assert json.loads((folder / "summary.json").read_text())["attempts"] == 4
    logged = read_metrics(folder / "metrics.csv")
    expected = read_metrics(whole / "run" / "metrics.csv")
    assert logged["recovery/restarts"] == [(28, 1.0), (56, 2.0), (63, 3.0)]
    assert logged["recovery/lost_steps"] == [(28, 5.0), (56, 4.0), (63, 7.0)]
    assert all(0 < ratio < 1 for _, ratio in logged["recovery/effective_time_ratio"])
    assert all(seconds > 0 for _, seconds in logged["recovery/seconds"])
    compared_names = {name for name in expected if not name.startswith(("time/", "checkpoint/"))} - {"epoch"}
    assert {name: logged[name] for name in compared_names} == {name: expected[name] for name in compared_names}


def test_augmentation_and_averaged_weights_go_on_too_whatever_the_number_of_workers(
    killed, command: Command, tmp_path: Path
):
    overrides = [word for word in OVERRIDES if not word.startswith(("name=", "scheduler="))]
    overrides += [
        "augmentation=[crop_flip,mixup,cutmix]",
        "model=cnn",
        "model.width=4",
        "callbacks=ema",
        "scheduler=cosine",
    ]
    overrides += ["trainer.max_epochs=3"]
    assert command(*overrides, "name=whole").returncode == 0
    killed(*overrides, "name=run", "data.num_workers=2", at="on_train_batch_end", step=25)
    killed(*overrides, "name=run", at="on_validation_batch_start", step=40)
    result = command(*overrides, "name=run", "data.num_workers=2")
    assert result.returncode == 0, result.stderr
    expected, actual = final_weights(tmp_path / "runs", "whole"), final_weights(tmp_path / "runs")
    assert expected["global_step"] == actual["global_step"] == 60
    assert all(torch.equal(value, actual["state_dict"][name]) for name, value in expected["state_dict"].items())


@pytest.mark.parametrize("strategy", mark_cases(["ddp", "fsdp"], ["fsdp"]))
def test_two_ranks_go_on_too(strategy: str, killed, command: Command, tmp_path: Path):
    overrides = [
        *OVERRIDES, f"trainer={strategy}", "trainer.devices=2", "trainer.accelerator=cpu", "data.num_workers=1",
        "callbacks.recovery.async_save=true",
        "scheduler=one_cycle",  # which takes its length from the run, and so asks for the data before all else
        "trainer.max_epochs=3", *(["callbacks=ema"] if strategy == "fsdp" else []),
    ]  # fmt: skip
    assert command(*overrides, "runs_dir=whole").returncode == 0
    killed(*overrides, at="on_train_batch_end", step=33, rank=0)
    result = command(*overrides)
    assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "runs")


@pytest.mark.drill
def test_one_rank_goes_on_for_two_and_two_for_one_with_the_batch_of_the_whole_job(
    killed, command: Command, tmp_path: Path
):
    noisy = ("model.", "scheduler=", "trainer.")  # what depends on how many samples pass together
    overrides = [word for word in OVERRIDES if not word.startswith(noisy)]
    overrides += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=3"]
    two_devices, one_device = "trainer.devices=2", "trainer.devices=1"
    assert command(*overrides, two_devices, "runs_dir=whole").returncode == 0
    killed(*overrides, two_devices, at="on_train_batch_end", step=33, rank=0)
    killed(*overrides, one_device, at="on_train_batch_end", step=45)
    result = command(*overrides, two_devices)
    assert result.returncode == 0, result.stderr
    assert "saved with world size 1 and this job has world size 2, so that this resume is not exact" in result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    attempts = json.loads((folder / "run.json").read_text())["attempts"]
    assert [(attempt["ranks"], attempt["accumulated"]) for attempt in attempts] == [(2, 1), (1, 2), (2, 1)]
    resumed_state, uninterrupted_state = final_weights(tmp_path / "whole"), final_weights(tmp_path / "runs")
    assert resumed_state["global_step"] == uninterrupted_state["global_step"] == 60
    one_way, other_way = (
        torch.cat([value.flatten() for value in attempt["state_dict"].values()])
        for attempt in (resumed_state, uninterrupted_state)
    )
    assert (one_way - other_way).norm() < 0.02 * one_way.norm()  # an epoch's last batch is divided otherwise


def test_weights_and_biases_gets_each_step_once_and_none_is_missing(
    killed, command: Command, whole: Path, tmp_path: Path
):
    overrides = [*OVERRIDES, "logger=wandb"]
    killed(*overrides, at="on_train_batch_end", step=33)
    killed(*overrides, at="on_train_batch_end", step=75)
    result = command(*overrides)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "run"
    assert f"wandb sync {folder.relative_to(tmp_path)}/wandb/offline-run-*" in result.stdout
    run_id = json.loads((folder / "run.json").read_text())["id"]
    assert len(list(folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 3
    histories = wandb_rows(folder)
    (unbroken,) = wandb_rows(whole / "run")
    rows = [row for history in histories for row in history]
    steps = [row["_step"] for row in rows]
    assert sorted(set(steps)) == steps
    merged = {(row["_step"], name): value for row in rows for name, value in row.items()}
    expected = {(row["_step"], name): value for row in unbroken for name, value in row.items()}
    expected = {
        (step, name): value
        for (step, name), value in expected.items()
        if not name.startswith(("time/", "checkpoint/", "_"))
        and "_table." not in name  # a chart's has names of its own
    }
    assert {key: merged.get(key) for key in expected} == expected
    added = {name for _, name in merged.keys() - expected.keys()}
    added = {name for name in added if "_table." not in name}
    assert all(name.startswith(("recovery/", "checkpoint/", "time/", "_")) or name == "epoch" for name in added)
    restarts = [value for (_, name), value in sorted(merged.items()) if name == "recovery/restarts"]
    assert restarts == [1, 2]


@pytest.mark.drill
def test_a_signal_to_every_process_of_a_job_costs_neither_the_run_nor_its_wandb_history(
    command: Command, whole: Path, tmp_path: Path
):
    (tmp_path / "mine.py").write_text(SIGNALS)
    overrides = [*OVERRIDES, "logger=wandb"]
    rerun_result = command(*overrides)
    assert rerun_result.returncode == 75, rerun_result.stderr
    (attempt,) = json.loads((tmp_path / "runs/run/run.json").read_text())["attempts"]
    assert attempt["reason"].startswith("stopped by SIGTERM at step 33;")
    result = command(*overrides)
    assert result.returncode == 0, result.stderr
    assert_same_end(whole, tmp_path / "runs")
    steps = [row["_step"] for history in wandb_rows(tmp_path / "runs/run") for row in history]
    assert steps == sorted(set(steps))
    assert steps[-1] == 100


def test_a_run_that_was_killed_in_its_test_is_tested_and_not_trained_again(killed, command: Command, tmp_path: Path):
    killed(*OVERRIDES, at="on_train_end")
    newest = Store(tmp_path / "runs/run/checkpoints").latest_checkpoint()
    assert newest is not None
    assert newest.step == 98
    assert command(*OVERRIDES).returncode == 0
    (tmp_path / "runs/run/summary.json").unlink()
    record = json.loads((tmp_path / "runs/run/run.json").read_text())
    (tmp_path / "runs/run/run.json").write_text(json.dumps({**record, "status": "running"}))
    rerun = command(*OVERRIDES)
    assert rerun.returncode == 0, rerun.stderr
    assert "resuming from step 100 (" in rerun.stdout
    rows = (tmp_path / "runs/run/metrics.csv").read_text().splitlines()
    assert {row.split(",")[4] for row in rows if row.startswith("3,")} >= {"test/accuracy"}
    assert not any(row.startswith("3,") and ",train/loss," in row for row in rows)


def test_the_best_weights_on_validation_are_tested_after_a_kill_too(killed, command: Command, tmp_path: Path):
    overrides = [*OVERRIDES, "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0.05"]
    assert command(*overrides, "runs_dir=whole").returncode == 0
    killed(*overrides, at="on_train_batch_end", step=50)
    assert command(*overrides).returncode == 0
    assert_same_end(tmp_path / "whole", tmp_path / "runs")
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    losses = [value for _, value in read_metrics(tmp_path / "runs/run/metrics.csv")["val/loss"]]
    assert summary["validation"]["loss"] == pytest.approx(min(losses))


def test_a_damaged_checkpoint_is_walked_past_and_kept_aside(killed, command: Command, whole: Path, tmp_path: Path):
    killed(*OVERRIDES, at="on_train_batch_end", step=33)
    checkpoints = tmp_path / "runs/run/checkpoints"
    newest = max(checkpoints.glob("*.ckpt"))
    os.truncate(newest, newest.stat().st_size - 1)
    result = command(*OVERRIDES)
    assert result.returncode == 0, result.stderr
    assert "resuming from step 21 (" in result.stdout
    assert (checkpoints / "quarantine" / newest.name).exists()
    assert f"{newest.name}: it has " in result.stderr
    attempt = json.loads((tmp_path / "runs/run/run.json").read_text())["attempts"][-1]
    assert list(attempt["skipped"]) == [newest.stem]
    assert_same_end(whole, tmp_path / "runs")


def test_a_run_never_starts_at_nothing_in_silence(killed, command: Command, tmp_path: Path):
    killed(*OVERRIDES, at="on_train_batch_end", step=33)
    checkpoints = tmp_path / "runs/run/checkpoints"
    for file in checkpoints.glob("*.ckpt"):
        file.write_bytes(b"")
    damaged = command(*OVERRIDES)
    assert damaged.returncode == 74
    assert "has no good checkpoint" in damaged.stderr
    assert "Traceback" not in damaged.stderr
    for file in checkpoints.iterdir():
        if file.is_file():
            file.unlink()
    gone = command(*OVERRIDES)
    assert gone.returncode == 2
    assert "its checkpoints are missing" in gone.stderr


def test_without_recovery_a_stopped_run_is_not_started_from_nothing(killed, command: Command, tmp_path: Path):
    overrides = ["callbacks=none", OVERRIDES[0], "name=run", "trainer.max_epochs=3"]
    killed(*overrides, at="on_train_batch_end", step=33)
    rerun = command(*overrides)
    assert rerun.returncode == 2
    assert "cannot resume, because stormproof.CheckpointRecovery is not among its callbacks" in rerun.stderr
    assert command(*overrides, "runs_dir=whole").returncode == 0
    assert (tmp_path / "whole/run/checkpoints/last.ckpt").exists()


def test_what_never_took_a_step_does_not_decide_how_a_corrected_run_begins(command: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from pytorch_lightning import Callback\n"
        "class Mistaken(Callback):\n"
        "    def on_train_batch_start(self, *args):\n"
        "        raise ValueError('mistaken')\n"
    )
    overrides = ["name=run", "trainer.max_epochs=1"]
    assert command(*overrides, "callbacks.mistaken._target_=mine.Mistaken", "callbacks.step_timer=null").returncode == 1
    corrected = command(*overrides, "seed=1")
    assert corrected.returncode == 0, corrected.stderr
    assert "resuming" not in corrected.stdout
    assert command(*overrides, "seed=1", "runs_dir=whole").returncode == 0
    assert_same_end(tmp_path / "whole", tmp_path / "runs")


def test_a_crash_loop_is_ended_with_code_77_until_somebody_asks_for_more(command: Command, tmp_path: Path):
    overrides = ["callbacks.faults._target_=mine.Broken", "name=run", "trainer.max_epochs=1"]
    (tmp_path / "mine.py").write_text(
        "import pytorch_lightning as pl\n\n\nclass Broken(pl.Callback):\n"
        "    def on_train_batch_end(self, *args):\n        raise RuntimeError('the licence server is down')\n"
    )
    for _ in range(4):
        assert command(*overrides).returncode == 1
    refused = command(*overrides)
    assert refused.returncode == 77
    assert "run was restarted 3 times without progress after the checkpoint of step 0 (last reason: " in refused.stderr
    assert "the licence server is down" in refused.stderr
    assert len(json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["attempts"]) == 4
    assert command(*overrides, "max_restarts_without_progress=null").returncode == 1

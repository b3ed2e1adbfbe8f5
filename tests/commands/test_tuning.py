"""``train.py tune=lr`` and ``tune=batch_size``: what is found, what is kept, and what cannot be found."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support import forked_command
from tests.support.forked_command import Command

MINE = """
import os
import signal
import pytorch_lightning as pl
import torch
from stormproof_train.data.digits import Digits

def constant(outputs, target):
    return (outputs * 0).sum() + 1

class WithoutRate(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)

class Bare(Digits):
    def __init__(self, seed: int = 0):
        super().__init__(seed=seed)

class Killed(Digits):
    def __init__(self, batch_size: int = 8, seed: int = 0):
        super().__init__(batch_size=batch_size, seed=seed)
        if batch_size > 8:
            os.kill(os.getpid(), signal.SIGKILL)

class TooLarge(Digits):
    def __init__(self, batch_size: int = 4, seed: int = 0):
        super().__init__(batch_size=batch_size, seed=seed)
        if batch_size >= 8:
            raise MemoryError

class Fragile(Digits):
    def train_dataloader(self):
        if self.trainer is not None and self.trainer.accumulate_grad_batches > 1:
            raise ValueError("not twice")
        return super().train_dataloader()

class Refusing(Digits):
    def __init__(self, batch_size: int = 8, seed: int = 0):
        super().__init__(batch_size=batch_size, seed=seed)
        if batch_size > 8:
            raise ValueError("eight it is")
"""

MISTAKES = {
    "what cannot be found": (["tune=foo"], "tune must be one of lr, batch_size, or null, got foo"),
    "a sweep": (["-m", "tune=lr", "seed=1"], "Remove -m"),
    "several devices": (["tune=lr", "trainer=ddp", "trainer.devices=2"], "measures on one device"),
    "an optimizer without a rate": (["tune=lr", "optimizer._target_=mine.WithoutRate"], "has no argument lr"),
    "a loss that never falls": (["tune=lr", "loss._target_=mine.constant"], "or set optimizer.lr by hand"),
    "data without a batch size": (["tune=batch_size", "data._target_=mine.Bare"], "has no argument batch_size"),
    "a batch that the data refuse": (["tune=batch_size", "data._target_=mine.Refusing"], "data: eight it is"),
    "too few samples": (
        ["tune=batch_size", "data.validation_fraction=0.83"],
        "training samples are too few for a batch of at least 8",
    ),
}


def run_tune(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return forked_command.run(list(overrides), cwd=folder, env=os.environ, timeout=200)


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_training_with_the_rate_that_was_found_beats_a_thousandth_of_it(command: Command, tmp_path: Path) -> None:
    override = last_line(command("tune=lr"))
    (run_folder,) = (tmp_path / "runs").iterdir()
    assert run_folder.name.startswith("tune-lr-digits-mlp-relu-")
    assert yaml.safe_load(run_folder.read_text())["override"] == override
    rate = float(re.fullmatch(r"optimizer\.lr=(\S+)", override)[1])  # pyright: ignore[reportOptionalSubscript]

    losses = {}
    for lr in (rate, rate / 1000):
        result = command(f"optimizer.lr={lr}", f"name={lr}", "trainer.max_epochs=2", "callbacks=none")
        assert result.returncode == 0, result.stderr
        losses[lr] = yaml.safe_load((tmp_path / "runs" / str(lr) / "summary.json").read_text())["validation"]["loss"]
    assert losses[rate] < 0.5 < losses[rate / 1000]


@pytest.fixture(scope="module")
def found_by_sgd(tmp_path_factory: pytest.TempPathFactory) -> str:
    return last_line(run_tune(tmp_path_factory.mktemp("sgd"), "tune=lr", "optimizer=sgd"))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["none", "one_cycle", "warmup_cosine", "plateau"])
def test_the_same_is_found_again_whatever_the_schedule(scheduler: str, found_by_sgd: str, tmp_path: Path) -> None:
    assert last_line(run_tune(tmp_path, "tune=lr", "optimizer=sgd", f"scheduler={scheduler}")) == found_by_sgd


@pytest.mark.slow
def test_the_length_of_the_run_does_not_matter(found_by_sgd: str, tmp_path: Path) -> None:
    assert last_line(run_tune(tmp_path, "tune=lr", "optimizer=sgd", "trainer.max_steps=5")) == found_by_sgd


@pytest.mark.slow
def test_noisy_losses_of_a_regression_give_nearly_one_rate(tmp_path: Path) -> None:
    result = run_tune(tmp_path, "tune=lr", "data=diabetes")
    assert 1e-4 < float(last_line(result).partition("=")[2]) < 1e-2
    apart = re.search(r"a factor of (\S+) apart", result.stdout)
    assert apart, result.stdout
    assert float(apart[1]) < 4


@pytest.mark.slow
def test_accumulated_batches_are_one_step_with_one_rate(tmp_path: Path) -> None:
    last = last_line(run_tune(tmp_path, "tune=lr", "trainer.accumulate_grad_batches=3", "data.batch_size=48"))
    assert 1e-4 < float(last.partition("=")[2]) < 1e-1


@pytest.mark.slow
def test_a_batch_size_is_found_and_only_the_measurements_stay(tmp_path: Path) -> None:
    result = run_tune(tmp_path, "tune=batch_size")
    override = last_line(result)
    (report_file,) = (tmp_path / "runs").iterdir()
    report = yaml.safe_load(report_file.read_text())
    sizes = [measurement["batch_size"] for measurement in report["measured"]]
    assert sizes == [8, 16, 32, 64]
    assert override == report["override"]
    size = int(override.removeprefix("data.batch_size="))
    assert size in sizes
    noise = report["noise"]
    assert (noise["batch_size"], noise["steps"]) == (size, 100)
    assert 1 < noise["noise_scale"] < 10_000
    assert f"noise scale is {noise['noise_scale']:,.0f} samples after 100 steps with batches of {size}" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_throughputs_are_kept_if_the_noise_scale_cannot_be_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    result = run_tune(tmp_path, "tune=batch_size", "data._target_=mine.Fragile")
    assert re.fullmatch(r"data\.batch_size=\d+", last_line(result))
    assert "the noise scale of the gradient is unknown: " in result.stdout
    assert "not twice" in result.stdout


@pytest.mark.slow
def test_a_process_that_the_system_ends_loses_only_the_size_that_it_was_at(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    result = run_tune(tmp_path, "tune=batch_size", "data._target_=mine.Killed")
    assert last_line(result) == "data.batch_size=8"
    assert "the system killed the process that tried 16 (exit code -9)" in result.stdout


@pytest.mark.slow
def test_a_smallest_size_that_does_not_fit_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    result = run_tune(tmp_path, "tune=batch_size", "data._target_=mine.TooLarge")
    assert result.returncode == 1
    assert "8 does not fit into memory. This is the smallest batch size" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_tuned_is_told_in_a_sentence(mistake: str, tmp_path: Path) -> None:
    overrides, sentence = MISTAKES[mistake]
    (tmp_path / "mine.py").write_text(MINE)
    result = run_tune(tmp_path, *overrides)
    assert result.returncode == 2, result.stderr
    assert sentence in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("runs/*.yaml"))

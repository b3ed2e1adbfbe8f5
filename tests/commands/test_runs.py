"""Whole runs through the real command line."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from stormproof.checkpoint import Store
from stormproof_train.data.digits import Digits
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.models import MLP
from stormproof_train.run.metrics_rows import read_metrics
from tests.support import forked_command
from tests.support.forked_command import ROOT, TRAIN, Command

pytestmark = pytest.mark.slow


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = Store(folder / "checkpoints").latest_checkpoint()
    assert newest is not None
    return torch.load(newest.path, weights_only=True)["state_dict"]


def assert_equal_bitwise(first: Path, second: Path) -> None:
    first_weights, second_weights = load_weights(first), load_weights(second)
    assert first_weights.keys() == second_weights.keys()
    assert all(torch.equal(first_weights[name], second_weights[name]) for name in first_weights)


def test_the_default_command_reaches_95_percent_and_leaves_a_whole_folder(command: Command, tmp_path: Path):
    result = command("train", "activation=elu", "logger=wandb")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-mlp-elu-[0-9a-f]{8}", folder.name)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"]["accuracy"] >= 0.95
    assert summary["test"].keys() == summary["validation"].keys() == {"accuracy", "f1", "loss"}
    assert summary["parameters"] == sum(
        p.numel() for name, p in load_weights(folder).items() if name.startswith("network")
    )
    assert f"{summary['test']['accuracy']:.4f}" in result.stdout
    assert result.stdout.splitlines()[-1] == f"run folder: runs/{folder.name}"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert len(Predictions.load(folder / "predictions.npz")) == evaluation["samples"] == 270
    for name in ("accuracy", "f1"):
        interval = evaluation["headline"][name]
        assert interval["value"] == pytest.approx(summary["test"][name], abs=1e-6)
        assert summary["intervals"][name] == [interval["low"], interval["high"]]
        assert f"{interval['low']:.4f} to {interval['high']:.4f}" in result.stdout
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["attempts"][0]["last_step"] == summary["steps"] == 600
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["activation"] == {"_target_": "torch.nn.ELU", "alpha": 1.0, "inplace": False}
    assert config["optimizer"]["betas"] == [0.9, 0.999]
    assert not (folder / "lease.json").exists()
    (wandb_line,) = (line for line in result.stdout.splitlines() if line.startswith("W&B: offline (no API key)"))
    (files,) = set(re.findall(r"wandb (?:sync|leet run) ([^;]+)", wandb_line))
    assert list((tmp_path / files).glob("run-*.wandb"))


def test_the_same_command_twice_trains_once(command: Command, tmp_path: Path):
    first = command("trainer.max_epochs=2")
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    rerun = command("trainer.max_epochs=2", "data.num_workers=1", "debug=true")
    assert (first.returncode, rerun.returncode) == (0, 0)
    assert "has already finished" in rerun.stdout
    output_lines, again_said = first.stdout.splitlines(), rerun.stdout.splitlines()
    assert output_lines[1].startswith("layer ")  # what was measured is only told when it was
    assert again_said[1:] == output_lines[1 - len(again_said) :]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == written


def test_without_a_test_nobody_asks_for_the_test_split(command: Command, tmp_path: Path):
    (tmp_path / "sealed.py").write_text(
        "from stormproof_train.data.digits import Digits\n"
        "class Sealed(Digits):\n"
        "    def load_test(self):\n"
        "        raise AssertionError('the seal is broken')\n"
        "    test_dataloader = load_test\n"
    )
    overrides = ["data._target_=sealed.Sealed", "trainer.max_epochs=2", "callbacks=[default,early_stopping]"]
    broken = command(*overrides, "name=tested")
    assert broken.returncode == 1
    assert "the seal is broken" in broken.stderr
    result = command(*overrides, "name=untested", "test=false", "logger=wandb", "report=true")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs/untested"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"] == summary["intervals"] == {}
    assert summary["validation"].keys() == {"accuracy", "f1", "loss"}
    assert (folder / summary["weights"]).is_file()
    left = {file.name for file in folder.iterdir()}
    assert "report.html" in left
    assert not left & {"predictions.npz", "evaluation.json"}
    assert not [name for name in read_metrics(folder / "metrics.csv") if name.startswith("test/")]


def test_what_was_left_untested_is_not_trained_again_and_evaluate_tests_it(command: Command, tmp_path: Path):
    overrides = ["trainer.max_epochs=2", "callbacks=[default,early_stopping]"]
    assert command(*overrides, "name=tested").returncode == 0
    assert command(*overrides, "name=untested", "test=false").returncode == 0
    assert_equal_bitwise(tmp_path / "runs/tested", tmp_path / "runs/untested")
    rerun = command(*overrides, "name=untested", "test=true")
    assert rerun.returncode == 0, rerun.stderr
    assert "untested has already finished" in rerun.stdout
    *_, sentence, last = rerun.stdout.splitlines()
    assert last == "run folder: runs/untested"
    message_match = re.fullmatch(
        r"the test split was not read\. To evaluate it: stormproof-train (evaluate \S+)", sentence
    )
    assert message_match is not None
    evaluated = forked_command.run(message_match.group(1).split(), cwd=tmp_path, env=os.environ, timeout=200)
    assert evaluated.returncode == 0, evaluated.stderr
    (evaluation,) = (
        json.loads(file.read_text()) for file in tmp_path.glob("runs/untested/evaluations/*/evaluation.json")
    )
    expected = json.loads((tmp_path / "runs/tested/evaluation.json").read_text())
    assert evaluation["split"] == "test"
    assert evaluation["headline"] == expected["headline"]


@pytest.mark.parametrize("extra", [[], ["data.num_workers=2"], ["logger=tensorboard"]])
def test_the_seed_fixes_the_weights_bit_for_bit(extra: list[str], command: Command, tmp_path: Path):
    overrides = ["trainer.max_epochs=3", "model.dropout=0.2", "model.norm=batch"]
    assert command("name=one", *overrides).returncode == 0
    assert command("name=two", *overrides, *extra).returncode == 0
    assert_equal_bitwise(tmp_path / "runs/one", tmp_path / "runs/two")
    assert command("name=three", *overrides, "seed=1").returncode == 0
    first_weights, third_weights = load_weights(tmp_path / "runs/one"), load_weights(tmp_path / "runs/three")
    assert not torch.equal(first_weights["network.1.weight"], third_weights["network.1.weight"])


def test_accumulated_batches_are_shares_of_the_same_global_batch(command: Command, tmp_path: Path):
    overrides = ["trainer.max_epochs=3"]
    assert command("name=whole", *overrides).returncode == 0
    assert command("name=shares", *overrides, "trainer.accumulate_grad_batches=4").returncode == 0
    unsharded, shares = (
        json.loads((tmp_path / f"runs/{name}/summary.json").read_text()) for name in ("whole", "shares")
    )
    assert unsharded["steps"] == shares["steps"]
    # not closer: Lightning divides the gradient of an epoch's last, incomplete group by the full number of batches
    assert unsharded["validation"]["loss"] == pytest.approx(shares["validation"]["loss"], rel=0.05)


def test_two_ranks_train_as_one_run(command: Command, tmp_path: Path):
    overrides = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=3"]
    result = command("name=two", *overrides, "data.drop_last=true", "resume=never")
    assert result.returncode == 0, result.stderr
    assert "2 ranks x 1 batch per step x 32 samples = 64; 19 steps per epoch, 57 in total; " in result.stdout
    record = json.loads((tmp_path / "runs/two/run.json").read_text())
    assert [(attempt["ranks"], attempt["last_step"]) for attempt in record["attempts"]] == [(2, 57)]
    assert result.stdout.count("run folder:") == 1
    rows = (tmp_path / "runs/two/metrics.csv").read_text().splitlines()
    assert len([row for row in rows if ",val/accuracy," in row]) == 4  # three epochs and the final pass, once each
    assert command("name=one", "trainer.max_epochs=3", "data.drop_last=true").returncode == 0
    two_ranks, single_rank = (read_metrics(tmp_path / f"runs/{name}/metrics.csv") for name in ("two", "one"))
    for name in ("val/loss", "generalization/train_loss"):
        assert two_ranks[name][0] == pytest.approx(single_rank[name][0], rel=1e-3)  # of the first epoch


SHARED_FOLDER = ("train/", "val/", "test/", "generalization/", "gradients/", "units/")


def test_parameters_that_are_spread_over_the_ranks_train_and_are_averaged_as_whole_ones(
    command: Command, tmp_path: Path
):
    overrides = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=2", "model.norm=batch"]
    overrides += ["callbacks=ema"]
    for strategy in ("ddp", "fsdp"):
        result = command(f"trainer={strategy}", f"name={strategy}", *overrides)
        assert result.returncode == 0, result.stderr
    ddp_metrics, spread = (read_metrics(tmp_path / f"runs/{name}/metrics.csv") for name in ("ddp", "fsdp"))
    assert ddp_metrics.keys() == spread.keys()
    monitored = [name for name in ddp_metrics if name.startswith(SHARED_FOLDER)]
    assert {"gradients/norm", "units/dead_fraction/network.3", "generalization/gap"} <= set(monitored)
    for name in monitored:
        assert [step for step, _ in spread[name]] == [step for step, _ in ddp_metrics[name]]
        values = [value for _, value in ddp_metrics[name]]
        assert [value for _, value in spread[name]] == pytest.approx(values, rel=1e-4, abs=1e-6), name


def test_diabetes_alone_picks_its_loss_and_metrics(command: Command, tmp_path: Path):
    result = command("data=diabetes", "trainer.max_epochs=5")
    assert result.returncode == 0, result.stderr
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.rglob("summary.json"))
    assert list(summary["test"]) == ["rmse", "mae", "r2", "loss"]
    assert 30 < summary["test"]["rmse"] < 77  # in the target's own unit; a constant prediction has about 77
    (config,) = (yaml.safe_load(path.read_text()) for path in tmp_path.rglob("config.yaml"))
    assert config["loss"]["_target_"] == "stormproof_train.losses.MSE"


def test_a_table_is_compared_with_baselines_alike_in_terminal_and_report_and_on_one_rank_or_two(
    command: Command, tmp_path: Path
):
    matches = []
    for name, overrides in (("one", []), ("two", ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"])):
        result = command("data=diabetes", "trainer.max_epochs=2", "report=true", f"name={name}", *overrides)
        assert result.returncode == 0, result.stderr
        summary = json.loads((tmp_path / f"runs/{name}/summary.json").read_text())
        assert list(summary["baselines"]) == ["ridge regression", "constant"]
        assert len(summary["conclusions"]) == 2
        page = (tmp_path / f"runs/{name}/report.html").read_text()
        for sentence in summary["conclusions"]:
            assert result.stdout.splitlines().count(sentence) == 1
            assert sentence in page
        (shown,) = re.findall(r"│ r2 .*│ +(\S+) │ +0\.0000 │", result.stdout)
        assert shown == f"{summary['baselines']['ridge regression']['r2']:.4f}"
        assert f">{shown}<" in page
        matches.append(summary["baselines"])
    assert matches[0] == matches[1]


def test_a_sweep_leaves_one_folder_a_run_and_one_sorted_table(command: Command, tmp_path: Path):
    overrides = ["-m", "activation=relu,elu", "seed=1,2", "trainer.max_epochs=2"]
    result = command(*overrides)
    assert result.returncode == 0, result.stderr
    folders = [path for path in (tmp_path / "runs").iterdir() if path.name != "sweeps"]
    assert len(folders) == 4
    table = result.stdout[result.stdout.index("4 runs, best on validation first") :]
    scores = [float(score) for score in re.findall(r"│ +(0\.\d{4}) │ +0\.\d{4} │", table)]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    rerun = command(*overrides)
    assert rerun.returncode == 0
    assert rerun.stdout.count("has already finished") == 4
    assert rerun.stdout[rerun.stdout.index("4 runs") :] == table


def test_a_failed_job_does_not_end_the_sweep_but_its_exit_code_tells(command: Command):
    result = command("-m", "optimizer.lr=-1,0.01", "trainer.max_epochs=1")
    assert result.returncode == 2
    assert "#0 failed: optimizer: Invalid learning rate: -1" in result.stdout
    assert "optimizer.lr=0.01 │" in result.stdout


@pytest.mark.drill
def test_a_sweeps_jobs_of_two_ranks_are_processes_of_their_own(tmp_path: Path):
    """Not forked, as other commands here: each starts the command once more."""
    config_folder = tmp_path / "configs" / "model"
    config_folder.mkdir(parents=True)
    (config_folder / "tiny.yaml").write_text("# Of one's own.\n_target_: stormproof_train.models.MLP\nwidth: 8\n")
    overrides = ["-m", "--config-dir", "configs", "model=tiny", "trainer=ddp", "trainer.devices=2", "logger=none"]
    overrides += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "seed=1,2", "optimizer.lr=0.01,-1"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert result.stdout.count("2 ranks x 1 batch per step x 32 samples = 64") == 2
    assert result.stdout.count("failed: the subprocess exited with code 2; see its message above") == 2
    assert result.stderr.count("optimizer: Invalid learning rate: -1") >= 2
    assert "4 runs, best on validation first" in result.stdout
    records = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/run.json")]
    trained = [record["attempts"][0]["ranks"] for record in records if record["status"] == "finished"]
    assert trained == [2, 2]


def test_early_stopping_stops_and_tests_the_best_weights(command: Command, tmp_path: Path):
    result = command(
        "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0.05", "name=early"
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs/early"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] < 30
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    losses = [float(row[5]) for row in rows if row[4] == "val/loss"]
    assert summary["validation"]["loss"] == pytest.approx(min(losses))
    best = min(
        Store(folder / "checkpoints").read_checkpoints(),
        key=lambda checkpoint: (checkpoint.score is None, checkpoint.score),
    )
    assert best.score == pytest.approx(min(losses))


def test_the_users_own_parts_come_by_target_and_by_config_folder(command: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "import pytorch_lightning as pl\n"
        "class Swish(nn.Module):\n"
        "    def __init__(self, beta: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.beta = beta\n"
        "    def forward(self, x):\n"
        "        return x * torch.sigmoid(self.beta * x)\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, hidden: int = 4):\n"
        "        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Linear(3, hidden), nn.Linear(hidden, num_classes))\n"
        "    def forward(self, x):\n"
        "        return self.net(x)\n"
        "def margin(output, target, weight: float = 1.0):\n"
        "    return weight * nn.functional.multi_margin_loss(output, target)\n"
        "class Data(pl.LightningDataModule):\n"
        "    num_classes = 2\n"
        "    def loader(self):\n"
        "        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))\n"
        "        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)\n"
        "    train_dataloader = val_dataloader = test_dataloader = loader\n"
    )
    result = command(
        "data._target_=mine.Data", "model._target_=mine.Net", "model.hidden=6", "loss._target_=mine.margin",
        "loss.weight=2.0", "activation._target_=torch.tanh", "trainer.max_epochs=2", "name=own",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert load_weights(tmp_path / "runs/own")["network.net.0.weight"].shape == (6, 3)
    (tmp_path / "configs" / "activation").mkdir(parents=True)
    (tmp_path / "configs/activation/swish.yaml").write_text("# x times sigmoid.\n_target_: mine.Swish\nbeta: 1.5\n")
    listed = command("--config-dir", "configs", "activation=swish", "--help")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"activation=swish +x times sigmoid\.", listed.stdout)
    assert "activation.beta=1.5" in listed.stdout
    result = command("--config-dir", "configs", "activation=swish", "trainer.max_epochs=1", "name=swish")
    assert result.returncode == 0, result.stderr


def test_the_users_own_initialization_changes_the_network_in_place(command: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def constant(network, activation, value: float = 0.01):\n"
        "    assert isinstance(activation(), torch.nn.ELU)\n"
        "    for parameter in network.parameters():\n"
        "        torch.nn.init.constant_(parameter, value)\n"
        "    return network\n"
        "def alone(network, activation):\n"
        "    assert activation is None, 'a network that takes no activation has none'\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))\n"
    )
    overrides = ["initialization._target_=mine.constant", "activation=elu", "trainer.max_epochs=1", "optimizer.lr=0"]
    assert command(*overrides, "name=small").returncode == 0
    assert all(
        (value == 0.01).all() for key, value in load_weights(tmp_path / "runs/small").items() if "network" in key
    )
    refused = command(*overrides, "name=small", "initialization.value=0.02")
    assert refused.returncode == 2
    assert "initialization.value: 0.01 -> 0.02" in refused.stderr
    result = command("initialization._target_=mine.alone", "model._target_=mine.Net", "trainer.max_epochs=1")
    assert result.returncode == 0, result.stderr


def test_help_names_what_the_data_cannot_do_without(command: Command):
    result = command("--help", "data=csv", "data.target=y")
    assert result.returncode == 0, result.stderr
    assert "  data.path=  (required)\n  data.task=null\n" in result.stdout
    assert "  data.target=y\n" in result.stdout


def test_help_lists_every_choice_with_a_line_and_the_chosen_arguments(command: Command):
    result = command("--help", "activation=elu", "data=diabetes")
    assert result.returncode == 0, result.stderr
    choices = re.findall(r"^  (\w+=[\w/]+) +(.*)$", result.stdout[: result.stdout.index("Settings")], re.MULTILINE)
    listed = {name for name, _ in choices}
    assert {"activation=softmax", "loss=huber", "logger=none", "data=fashion_mnist"} <= listed
    assert {"initialization=torch", "experiment=fashion_mnist_cnn", "experiment=broken/vanishing_sigmoid"} <= listed
    assert all(line for _, line in choices)
    assert "activation.alpha=1.0" in result.stdout
    assert "loss: stormproof_train.losses.MSE" in result.stdout


@pytest.mark.parametrize(
    ("experiment", "lines"),
    [
        ("fashion_mnist_cnn", ["model.norm=batch", "trainer.max_epochs=10"]),
        ("table", ["data.path={_target_: stormproof_train.examples.shipped, name: deliveries.csv}"]),
        ("broken/dying_relu", ["activation: torch.nn.ReLU", "optimizer.lr=0.05"]),
        ("broken/vanishing_sigmoid", ["activation: torch.nn.Sigmoid", "model.depth=8"]),
    ],
)
def test_an_experiment_is_shown_with_what_it_sets(experiment: str, lines: list[str], command: Command):
    result = command(f"experiment={experiment}", "--help")
    assert result.returncode == 0, result.stderr
    assert set(lines) <= {line.strip() for line in result.stdout.splitlines()}


def test_the_arguments_of_the_training_loop_reach_it(command: Command, tmp_path: Path):
    overrides = ["trainer.max_steps=7", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0", "model=cnn"]
    result = command(*overrides, "scheduler=warmup_cosine", "optimizer=sgd", "name=knobs")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "runs/knobs/summary.json").read_text())["steps"] == 7


def test_output_that_nobody_reads_to_the_end_is_no_error_of_ours(tmp_path: Path):
    overrides = [sys.executable, str(ROOT / "train.py"), "logger=none", "trainer.max_epochs=1"]
    process = subprocess.Popen(overrides, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("digits-mlp-relu-")
    process.stdout.close()
    assert process.wait(timeout=100) == 141
    assert list(tmp_path.glob("runs/*/summary.json"))
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "encoding"),
    [("", "ascii"), (">&- 2>&-", "utf-8"), (">/dev/full 2>/dev/full", "utf-8")],
    ids=["ascii", "closed", "full"],
)
def test_a_run_finishes_with_closed_full_or_ascii_output(redirection: str, encoding: str, tmp_path: Path):
    line = f"exec {sys.executable} {TRAIN} name=mine logger=none trainer.max_epochs=1 {redirection}"
    result = subprocess.run(
        ["/bin/sh", "-c", line], cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/mine/summary.json").exists()
    assert (tmp_path / "runs/mine/report.html").exists()
    assert result.stderr == b""
    assert result.stdout.splitlines()[-1:] == ([] if redirection else [b"report: runs/mine/report.html"])


@pytest.mark.drill
def test_a_key_without_a_network_trains_offline(command: Command, tmp_path: Path):
    away = {**os.environ, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = command("logger=wandb", "trainer.max_epochs=1", env=away)
    assert result.returncode == 0, result.stderr
    assert "W&B: offline (the server does not respond, or rejects the key)" in result.stdout
    assert list(tmp_path.rglob("offline-run-*/run-*.wandb"))


def test_numbers_that_are_not_finite_are_said(command: Command):
    result = command("data=diabetes", "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=2", "callbacks=none")
    assert result.returncode == 0, result.stderr
    assert "not finite: the run diverged" in result.stdout


def test_the_best_average_is_what_is_tested(command: Command, tmp_path: Path):
    """The best checkpoint is not the last: its ``state_dict``, the average, has to give the loss of the test."""
    overrides = [
        "callbacks=[early_stopping,ema]",
        "optimizer.lr=0.03",
        "callbacks.early_stopping.patience=3",
        "name=run",
    ]
    result = command(*overrides, "trainer.max_epochs=40")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "run"
    summary = json.loads((folder / "summary.json").read_text())
    logged = read_metrics(folder / "metrics.csv")["val/loss"]
    best = min(value for _, value in logged[:-1])  # the last row is of the evaluation
    assert logged[-2][1] > best
    assert summary["validation"]["loss"] == pytest.approx(best, rel=1e-5)
    store = Store(folder / "checkpoints")
    best_checkpoint = min(
        store.read_checkpoints(), key=lambda checkpoint: checkpoint.score if checkpoint.score is not None else math.inf
    )
    state = torch.load(best_checkpoint.path, weights_only=True)["state_dict"]
    data = Digits(seed=0)
    data.setup("test")
    inputs, labels = data.load_test()
    network = MLP((1, 8, 8), 10, torch.nn.ReLU)
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    loss = torch.nn.functional.cross_entropy(network(inputs), labels).item()
    assert summary["test"]["loss"] == pytest.approx(loss, rel=1e-4)


def test_weights_averaged_over_the_last_epochs_are_tested(command: Command, tmp_path: Path):
    result = command("callbacks=swa", "trainer.max_epochs=6", "name=run")
    assert result.returncode == 0, result.stderr
    assert "exact" not in result.stderr
    assert json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())["test"]["accuracy"] > 0.85

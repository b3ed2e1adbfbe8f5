"""Bad input through the real command line: one sentence, the documented exit code, no traceback."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from stormproof_train.cli.main import main
from tests.support.cases import mark_cases
from tests.support.forked_command import ROOT, Command
from tests.support.waiting import wait_for

ONE_EPOCH = "trainer.max_epochs=1"

USER_ERRORS = {
    "an unknown choice": (["activation=elo"], "activation=elo does not exist. Choices: elu, celu"),
    "an unknown choice of a sweep": (["-m", "activation=relu,elo"], "activation=elo does not exist"),
    "an unknown choice in a list": (
        ["callbacks=[early_stoping]"],
        "callbacks=early_stoping does not exist. Choices: early_stopping",
    ),
    "a mapping for a choice": (["activation={a: ${activation}}"], "activation=… must be the name of a choice"),
    "a folder of the Trainer's own": (
        ["trainer.default_root_dir=/x"],
        "trainer.default_root_dir is set by the run. Set runs_dir instead",
    ),
    "a logger of the Trainer's own": (["trainer.logger=false"], "trainer.logger is set by the run. Set logger instead"),
    "a sweep that runs a job twice": (["-m", "seed=1,2,1"], "seed=1,2,1 lists the value 1 twice. List each value once"),
    "a sweep whose jobs share a name": (
        ["-m", "seed=1,2", "name=same"],
        "name=same gives all jobs of seed=1,2 the same name. Remove it",
    ),
    "a misspelt group": (["optimzer=adam"], "Did you mean optimizer?"),
    "a misspelt setting": (["sed=1"], "Did you mean seed?"),
    "a misspelt group of an argument": (["activaton.alpha=1"], "Did you mean activation?"),
    "a misspelt argument": (["activation=elu", "activation.alhpa=1"], "did you mean alpha?"),
    "a word that is no override": (["seed=1", "frobnicate"], "'frobnicate' cannot be read"),
    "a bracket left open": (["activation=[relu"], "'activation=[relu' cannot be read"),
    "an unknown initialization": (
        ["initialization=glorot"],
        "initialization=glorot does not exist. Choices: ",
    ),
    "an unknown experiment of a folder": (
        ["experiment=broken/dying"],
        "experiment=broken/dying does not exist. Choices: broken/dying_relu, broken/",
    ),
    "an initialization that is a module": (
        ["initialization._target_=torch.nn.ReLU"],
        "torch.nn.ReLU returns a ReLU, but it",
    ),
    "an initialization of one tensor": (["initialization._target_=torch.nn.init.zeros_"], "needs the argument tensor"),
    "an activation that is nothing": (
        ["activation._target_=torch.zeros_like"],
        "of Elementwise(zeros_like) for standard",
    ),
    "an activation that is no number": (["activation._target_=torch.log"], "input, which is nan"),
    "a word for a number": (["model.width=wide"], "model.width must be int, got 'wide'"),
    "a fraction for a count": (["model.depth=1.5"], "model.depth must be int, got 1.5"),
    "a word for a seed": (["seed=lucky"], "seed must be a whole number from 0 to 4294967295, got lucky"),
    "a run of a few batches": (["trainer.fast_dev_run=true"], "trainer.fast_dev_run skips most batches"),
    "a negative seed": (["seed=-1"], "seed must be a whole number from 0 to 4294967295, got -1"),
    "an unknown precision": (["trainer.precision=half"], "trainer.precision must be"),
    "an unknown resume": (["resume=always"], "one of auto, must, never"),
    "a debug that is no bool": (["debug=maybe"], "debug must be true or false, got maybe"),
    "a test that is no bool": (["test=maybe"], "test must be true or false, got maybe"),
    "a report that is no bool": (["report=maybe"], "report must be true or false, got maybe"),
    "a negative learning rate": (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
    "an infinite learning rate": (["optimizer.lr=inf"], "optimizer.lr=inf must be finite"),
    "an infinite number of another argument": (["optimizer.weight_decay=1e400"], "optimizer.weight_decay=inf must be"),
    "an empty batch": (["data.batch_size=0"], "`batch_size` must be at least 1, got 0"),
    "a batch of more than all": (["data.batch_size=9999"], "exceeds the 1257 training samples"),
    "a batch that cannot be shared": (
        ["data.batch_size=63", "trainer.accumulate_grad_batches=2"],
        "must be divisible by",
    ),
    "a negative number of workers": (["data.num_workers=-1"], "`num_workers` must be at least 0, got -1"),
    "splits that leave nothing": (["data.validation_fraction=0.9"], "have a sum below 1"),
    "an impossible dropout": (["model.dropout=1.5"], "`dropout` must be in [0, 1), got 1.5"),
    "an impossible label smoothing": (["loss.label_smoothing=2"], "`label_smoothing` must be in [0, 1], got 2"),
    "a negative number of epochs": (["trainer.max_epochs=-5"], "`max_epochs` must be a non-negative integer or -1"),
    "a negative clipping": (["trainer.gradient_clip_val=-1"], "gradient_clip_val must be above 0"),
    "no epochs": (["trainer.max_epochs=0"], "trainer.max_epochs must not be 0"),
    "a group set to nothing": (["model=null"], "model=null: a group cannot be null"),
    "a setting with dashes": (["--activation", "elu"], "--activation: settings have no dashes: activation=elu"),
    "a setting with dashes and a value": (
        ["--model.width=8"],
        "--model.width=8: settings have no dashes: model.width=8",
    ),
    "a fraction that is no number": (
        ["data.validation_fraction=nan"],
        "must be above 0 and have a sum below 1, got nan",
    ),
    "runs set to nothing": (["runs_dir=null"], "runs_dir must be a folder, got None"),
    "a callback that is none": (["callbacks.mine._target_=torch.nn.ReLU"], "returns ReLU, not a Lightning callback"),
    "a validation never reached": (
        ["trainer.val_check_interval=1000"],
        "trainer.val_check_interval=1000 exceeds the 20 training batches of an epoch. Set trainer.val_check_inte",
    ),
    "stopping by what is not logged": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/los"],
        "callbacks.early_stopping.monitor=val/los is not logged. Metrics: val/accuracy, val/f1, val/loss",
    ),
    "stopping before the first validation": (
        ["callbacks=early_stopping", "trainer.max_steps=10"],
        "monitors val/loss, but the run ends before its first validation. Train for at least one epoch",
    ),
    "stopping because accuracy rises": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/accuracy"],
        "mode=min is wrong for val/accuracy, for which higher is better",
    ),
    "an average of untrained weights": (["callbacks=swa"], "which include the untrained weights"),
    "several activations at once": (["activation=[relu,elu]"], "a run has one activation. To try several, use -m"),
    "several values without a sweep": (["seed=1,2"], "Add -m for a sweep over them"),
    "an activation that gives a tuple": (["activation._target_=torch.sort"], "returns a tuple for input"),
    "log probabilities wanted": (["loss._target_=torch.nn.NLLLoss"], "this model returns logits. Choose loss=cross_en"),
    "images of another size": (["model=torchvision", "model.name=vit_b_16"], "Expected 224 but got 8"),
    "a run without validation": (["trainer.limit_val_batches=0"], "trainer.limit_val_batches must not be 0"),
    "a schedule without an end": (
        ["scheduler=cosine", "trainer.max_epochs=-1"],
        "needs the length of the run, which is unlimited",
    ),
    "data without a loader": (["data._target_=pytorch_lightning.LightningDataModule"], "has no train_dataloader"),
    "a last batch of one for batch norm": (["model.norm=batch", "data.batch_size=157"], "Set data.drop_last=true"),
    "a regression loss on classes": (["loss=mse"], "MSE is for regression, but this data is for classification"),
    "a classification loss on numbers": (["data=diabetes", "loss=cross_entropy"], "CrossEntropy is for classification"),
    "counted classes wanted, numbers given": (["data=diabetes", "loss=class_balanced"], "ClassBalanced is for classif"),
    "weights of too few classes": (
        ["loss.class_weights=[1,2]"],
        "weights or counts for 2 classes, but this data has 10",
    ),
    "a word for weights": (["loss=focal", "loss.class_weights=balance"], "loss.class_weights must be"),
    "images wanted, a table given": (["data=diabetes", "model=cnn"], "a CNN needs images"),
    "data that is not there": (
        ["data=fashion_mnist", "data.root=/nowhere", "data.packaged=/nowhere"],
        "data.download=true",
    ),
    "a table without its path": (
        ["data=csv"],
        "data: stormproof_train.data.csv.CSV needs the argument path. Set data.p",
    ),
    "a table that is not there": (
        ["data=csv", "data.path=/no.csv", "data.target=y"],
        "data.path=/no.csv cannot be read",
    ),
    "images that are not there": (["data=image_folder", "data.path=/nowhere"], "data.path=/nowhere does not exist"),
    "a table's column that is not there": (
        ["experiment=table", "data.target=minute"],
        "has no column 'minute'. Columns: minutes",
    ),
    "a module that is not there": (["activation._target_=no.such.Thing"], "no module no"),
    "a name that is not there": (["activation._target_=torch.nn.Elu"], "torch.nn has no Elu; did you mean ELU?"),
    "a target that cannot be called": (["activation._target_=torch.pi"], "torch.pi must be callable"),
    "a target without its argument": (["model._target_=torch.nn.Linear"], "needs the argument in_features"),
    "a callback without a target": (["callbacks.mine.x=1"], "callbacks.mine has no _target_"),
    "a config folder that is not there": (["--config-dir=/nowhere"], "'/nowhere' not found"),
    "runs in an object store": (["runs_dir=s3://bucket/x"], "runs_dir=s3://bucket/x is a URL; only local or mounted"),
    "a quoted URL": (
        ["data=csv", "data.path='gs://bucket/x.csv'", "data.target=y"],
        "data.path=gs://bucket/x.csv is a",
    ),
    "a file in the place of the runs": (["runs_dir=/dev/null/runs"], "is not a run folder: Not a directory"),
    "runs where nothing may be written": (["runs_dir=/sys/runs"], "runs_dir=/sys/runs"),
    "a name that is a path": (["name=a/b"], "name='a/b' is not a valid folder name"),
    "nothing to resume": (["resume=must"], "resume=must, but the run "),
    "a key wanted and missing": (["logger=wandb", "logger.mode=online"], "has no API key"),
}


COMMAND_LINE_ERRORS = [
    "an unknown choice", "an unknown choice of a sweep", "a misspelt argument", "a bracket left open",
    "a negative seed", "an empty batch", "a validation never reached", "a regression loss on classes",
    "a table that is not there", "a config folder that is not there", "runs where nothing may be written",
    "a key wanted and missing",
]  # fmt: skip


@pytest.mark.parametrize("mistake", COMMAND_LINE_ERRORS)
def test_a_mistake_is_one_sentence_and_exit_code_2(mistake: str, command: Command, tmp_path: Path):
    overrides, expected = USER_ERRORS[mistake]
    result = command(*_default_overrides(overrides, ONE_EPOCH), *overrides)
    _assert_refused(result.returncode, result.stdout, result.stderr, expected, tmp_path)


@pytest.fixture
def main_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Calls ``main()`` in this process and an empty folder; returns exit code, standard output and standard error."""

    def call(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py"])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            return main([*_default_overrides(overrides, ONE_EPOCH), *overrides]), *capfd.readouterr()

    return call


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [mistake for mistake in USER_ERRORS if mistake not in COMMAND_LINE_ERRORS])
def test_main_refuses_a_mistake_in_one_sentence_with_exit_code_2(
    mistake: str, main_here: Callable[..., tuple[int, str, str]], tmp_path: Path
):
    overrides, expected = USER_ERRORS[mistake]
    defaults = _default_overrides(overrides, "logger=none", "report=false")
    _assert_refused(*main_here(*defaults, *overrides), expected, tmp_path)


def _default_overrides(arguments: Sequence[str], *defaults: str) -> list[str]:
    given_keys = {word.partition("=")[0] for word in arguments}
    return [word for word in defaults if word.partition("=")[0] not in given_keys]


def _assert_refused(code: int, stdout: str, stderr: str, expected: str, folder: Path) -> None:
    lines = stderr.strip().splitlines()
    assert code == 2, stdout + stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("stormproof: ")
    assert expected in stdout + stderr
    assert "Traceback" not in stdout + stderr
    assert not list(folder.rglob("summary.json"))
    assert all("-step-0." in file.name for file in folder.rglob("*.ckpt"))


BEFORE_THE_RUN_EXISTS = {
    "steps": (["trainer.max_steps=-5"], "max_steps"),
    "no devices": (["trainer.devices=0"], "devices"),
    "a GPU that is not there": (["trainer.accelerator=cuda"], "trainer: "),
    "a word for a time": (["trainer.max_time=banana"], "trainer"),
    "a run without validation": (["trainer.limit_val_batches=0"], "trainer.limit_val_batches must not be 0"),
    "a batch of more than all": (["data.batch_size=100000000"], "samples. Set data.batch_size=1257 or less"),
    "a metric that is not logged": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc"], "monitor=val/acc is not logged"
    ),
    "an interval that cannot be": (["trainer.val_check_interval=-1"], "val_check_interval"),
    "an interval of more than an epoch": (["trainer.val_check_interval=21"], "=21 exceeds the 20 training batch"),
    "no whole batch": (["trainer.limit_test_batches=0.01"], "limit_test_batches=0.01 of 5 test batches is less"),
    "a batch that cannot be shared": (["trainer.accumulate_grad_batches=5"], "5 accumulated batches"),
    "no accumulated batches": (["trainer.accumulate_grad_batches=0"], "accumulate_grad_batches"),
}  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
@pytest.mark.slow
@pytest.mark.parametrize("mistake", BEFORE_THE_RUN_EXISTS)
def test_an_invalid_argument_leaves_no_files(
    mistake: str, main_here: Callable[..., tuple[int, str, str]], tmp_path: Path
):
    overrides, expected = BEFORE_THE_RUN_EXISTS[mistake]
    _assert_refused(*main_here("logger=wandb", "logger.mode=offline", "report=false", *overrides), expected, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bad_table_leaves_nothing_behind_and_a_changed_one_is_another_run(command: Command, tmp_path: Path):
    table = tmp_path / "table.csv"
    overrides = ["data=csv", "data.path=table.csv", "data.target=y", "data.batch_size=8", "name=mine", ONE_EPOCH]
    table.write_text("x,y\n" + "1,a\n2,b\n" * 10 + "3,\n")
    result = command(*overrides)
    assert result.returncode == 2
    assert "the target 'y' is missing in 1 of 21 rows (line 22)" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
    table.write_text("x,y\n" + "1,a\n2,b\n" * 10)
    assert command(*overrides).returncode == 0
    table.write_text("x,y\n" + "1,a\n2,b\n" * 11)
    changed = command(*overrides)
    assert changed.returncode == 2
    assert re.search(r"has other settings: data.fingerprint: \w{16} -> \w{16}. Choose another name", changed.stderr)


def test_an_unknown_command_names_those_there_are(command: Command):
    result = command("frobnicate", ONE_EPOCH)
    assert result.returncode == 2
    there_is = "train, report, search, compress, evaluate, predict"
    assert result.stderr == f"stormproof: unknown command frobnicate. Commands: {there_is}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["trian"], "unknown command trian. Did you mean train?"), (["report", "--hlep"], "Did you mean --help?")],
)
def test_a_misspelt_command_or_option_gets_a_suggestion(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.slow
def test_debug_shows_the_traceback_behind_the_sentence(command: Command):
    result = command("optimizer.lr=-1", "debug=true")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "Invalid learning rate" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_mistake_that_never_trained_does_not_block_the_corrected_run(command: Command, tmp_path: Path):
    assert command("name=mine", "scheduler=cosine", "trainer.max_epochs=-1").returncode == 2  # in configure_optimizers
    corrected = command("name=mine", ONE_EPOCH)
    assert corrected.returncode == 0, corrected.stderr
    attempts = json.loads((tmp_path / "runs/mine/run.json").read_text())["attempts"]
    assert [attempt["reason"] is None for attempt in attempts] == [False, True]


@pytest.mark.slow
def test_a_name_taken_by_another_run_is_refused_with_the_difference(command: Command):
    assert command("name=mine", ONE_EPOCH).returncode == 0
    result = command("name=mine", ONE_EPOCH, "optimizer.lr=0.01", "seed=3")
    assert result.returncode == 2
    assert "optimizer.lr: 0.001 -> 0.01; seed: 0 -> 3" in result.stderr
    never = command("name=mine", ONE_EPOCH, "resume=never")
    assert never.returncode == 2
    assert "resume=never" in never.stderr


@pytest.mark.slow
def test_a_folder_that_is_no_run_is_not_written_to(command: Command, tmp_path: Path):
    (tmp_path / "runs" / "thesis").mkdir(parents=True)
    (tmp_path / "runs" / "thesis" / "chapter1.tex").write_text("precious")
    result = command("name=thesis", ONE_EPOCH)
    assert result.returncode == 2
    assert "not a run folder" in result.stderr
    assert [path.name for path in (tmp_path / "runs" / "thesis").iterdir()] == ["chapter1.tex"]


@pytest.mark.slow
def test_a_full_disk_ends_with_74_and_leaves_nothing_that_looks_whole(tmp_path: Path):
    def fill() -> None:  # the kernel refuses to let a file grow beyond 100 kB; the first checkpoint has 140
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "name=full", ONE_EPOCH, "logger=none"],
        check=False, cwd=tmp_path, capture_output=True, text=True, timeout=200, preexec_fn=fill,
    )  # fmt: skip
    assert result.returncode == 74, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert json.loads((tmp_path / "runs/full/run.json").read_text())["status"] == "failed"
    left = {file.name for file in (tmp_path / "runs/full/checkpoints").iterdir()}
    assert left == {".lease.lock", "commits.log", "reached"}
    assert not (tmp_path / "runs/full/summary.json").exists()


def _reset_sigint() -> None:
    """Whoever runs the tests in the background hands an ignored SIGINT down to them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _read_steps(metrics: Path) -> dict[str, set[str]]:
    """Returns the steps of each attempt that has logged metrics."""
    steps: dict[str, set[str]] = {}
    for row in metrics.read_text().split("\n")[1:-1] if metrics.exists() else []:  # the last line may be incomplete
        attempt, step, *_ = row.split(",")
        steps.setdefault(attempt, set()).add(step)
    return steps


def _start_long_run(folder: Path, *overrides: str, attempt: str = "1") -> subprocess.Popen[str]:
    """Starts a run and waits until this attempt has logged two different steps."""
    arguments = ["logger=none", "name=long", "trainer.max_epochs=100000", *overrides]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_reset_sigint,  # noqa: PLW1509 (it does one system call)
    )
    metrics = folder / "runs" / "long" / "metrics.csv"
    wait_for(lambda: process.poll() is not None or len(_read_steps(metrics).get(attempt, ())) > 1)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.slow
def test_a_second_start_of_the_same_run_is_told_who_trains_it(command: Command, tmp_path: Path):
    process = _start_long_run(tmp_path)
    try:
        result = command("name=long", "trainer.max_epochs=100000")
        assert result.returncode == 2
        assert f"is in use by process {process.pid}" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert len(json.loads((tmp_path / "runs/long/run.json").read_text())["attempts"]) == 1
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum", mark_cases([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], [signal.SIGTERM])
)
def test_a_run_that_is_told_to_end_saves_and_goes_on(signum: signal.Signals, tmp_path: Path):
    process = _start_long_run(tmp_path)
    process.send_signal(signum)
    for _ in range(3):  # a scheduler may say it again, while the process is leaving
        time.sleep(0.2)
        process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    word = "Ctrl-C" if signum is signal.SIGINT else signum.name
    step = int(re.search(rf"stopped by {word} at step (\d+); the same command resumes from step \1", stderr)[1])  # type: ignore[index]
    assert "Traceback" not in stderr
    record = json.loads((tmp_path / "runs/long/run.json").read_text())
    assert record["status"] == "preempted"
    assert record["attempts"][0]["last_step"] == step > 0
    assert not (tmp_path / "runs/long/summary.json").exists()
    assert not (tmp_path / "runs/long/lease.json").exists()
    rerun = _start_long_run(tmp_path, attempt="2")
    assert rerun.stdout is not None
    first_lines = [rerun.stdout.readline(), rerun.stdout.readline()]
    rerun.kill()
    rerun.communicate()
    assert first_lines[1] == f"resuming from step {step} (000002-step-{step}.ckpt)\n"


@pytest.mark.slow
def test_a_killed_loader_worker_ends_the_run_with_75_and_it_resumes(tmp_path: Path):
    process = _start_long_run(tmp_path, "data.num_workers=1", "callbacks.recovery.every_n_train_steps=5")

    def ends() -> bool:  # the worker of an epoch that is over may be killed without effect
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        return process.poll() is not None

    wait_for(ends)
    _, stderr = process.communicate()
    assert process.returncode == 75, stderr
    assert re.search(  # a worker that dies while it sends a batch resets the connection
        r"a data loader worker was killed, possibly because memory ran out \((DataLoader worker \(pid|\[Errno 104\])",
        stderr,
    )
    # torch raises the error from a signal handler. Python prints it as ignored if a finalizer runs at that moment.
    ignored = r"^Exception ignored in.*?^RuntimeError: DataLoader worker .*?$"
    assert "RuntimeError" not in re.sub(ignored, "", stderr, flags=re.DOTALL | re.MULTILINE)
    rerun = _start_long_run(tmp_path, "data.num_workers=1", "callbacks.recovery.every_n_train_steps=5", attempt="2")
    assert rerun.stdout is not None
    first_lines = [rerun.stdout.readline(), rerun.stdout.readline()]
    rerun.kill()
    rerun.communicate()
    assert first_lines[1].startswith("resuming from step ")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code", "word"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_run_that_saves_nothing_ends_at_once(signum: signal.Signals, code: int, word: str, tmp_path: Path):
    process = _start_long_run(tmp_path, "callbacks=none")
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert f"stopped by {word} at step" in stderr
    assert "nothing was saved" in stderr
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / "runs/long/run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_ctrl_c_while_the_second_rank_is_not_there_yet_is_told_by_the_first(tmp_path: Path):
    overrides = ["logger=none", "name=two", "trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides, "trainer.max_epochs=100000"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as in a terminal
        preexec_fn=_reset_sigint,  # noqa: PLW1509 (it does one system call)
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    while "GLOBAL_RANK: 0" not in line:  # rank 0 now waits for rank 1, which is still importing
        assert line, "rank 0 never came to the meeting of the ranks"
        line = process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=100)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert rest.count("stopped by Ctrl-C") == 1
    record = json.loads((tmp_path / "runs/two/run.json").read_text())
    assert record["status"] == "interrupted"
    assert "stopped by Ctrl-C" in record["attempts"][0]["reason"]

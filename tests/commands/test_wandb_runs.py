"""Whole runs against a stand-in for W&B's server: all that is to arrive there does, and no secret is among it."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stormproof.checkpoint import Retention, Store
from stormproof_train.run.metrics_rows import read_metrics
from tests.support import forked_command
from tests.support.wandb_server import API_KEY, Run, WandbServer

pytestmark = pytest.mark.slow

MINE = """
import json, os
from stormproof.testing import FaultInjector
from stormproof_train.data.digits import Digits

def faults():
    ordered = json.loads(os.environ.get("FAULT", "null"))
    return FaultInjector().kill(**ordered) if ordered else FaultInjector()

class Data(Digits):
    def __init__(self, password: str, address: str, seed: int = 0):
        super().__init__(seed=seed)
"""
SECRETS = {
    "argument": "hunter-of-arguments", "user of an address": "hunter-of-users", "query": "hunter-of-queries",
    "variable": "hunter-of-variables", "netrc": "hunter-of-netrc", "remote": "hunter-of-remotes",
    "change": "hunter-of-changes", "key": API_KEY,
}  # fmt: skip
ADDRESS = f"https://me:{SECRETS['user of an address']}@data.example.org/a.csv?token={SECRETS['query']}&part=1"
OVERRIDES = [
    "name=run", "logger=wandb", "callbacks.faults._target_=mine.faults", "callbacks.recovery.every_n_train_steps=7",
    "callbacks.recovery.async_save=false", "experiment=broken/dying_relu", "optimizer.lr=0.3",
    "data._target_=mine.Data", f"data.password={SECRETS['argument']}", f"data.address='{ADDRESS}'",
    "callbacks.recovery.monitor=val/accuracy", "callbacks.recovery.mode=max", "callbacks.recovery.save_top_k=2",
    "logger.checkpoints=2", "logger.group=a-group", "logger.tags=[a-tag]", "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
]  # fmt: skip
RANKS = ["trainer=ddp", "trainer.devices=2"]


def prepare_environment(folder: Path) -> dict[str, str]:
    """A dirty checkout with a remote, and an environment, both with secrets in them."""
    (folder / "home").mkdir()
    (folder / "tmp").mkdir()
    (folder / "home" / ".netrc").write_text(f"machine example.org login me password {SECRETS['netrc']}\n")
    checkout = folder / "checkout"
    checkout.mkdir()
    (checkout / "mine.py").write_text(MINE)
    for overrides in (
        ["init", "--quiet"],
        ["remote", "add", "origin", f"https://{SECRETS['remote']}:x-oauth-basic@example.org/mine.git"],
        ["add", "mine.py"],
        ["-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "--quiet", "--message=mine"],
    ):
        subprocess.run(["git", *overrides], cwd=checkout, check=True)
    (checkout / "mine.py").write_text(f"{MINE}# {SECRETS['change']}\n")
    home, tmp = str(folder / "home"), str(folder / "tmp")
    environment = {"HOME": home, "NETRC": f"{home}/.netrc", "TMPDIR": tmp, "MY_TOKEN": SECRETS["variable"]}
    return {**os.environ, **environment}


def run(folder: Path, environ: Mapping[str, str], *overrides: str, **fault: Any) -> subprocess.CompletedProcess[str]:
    ordered = {"FAULT": json.dumps(fault)} if fault else {}
    return forked_command.run(
        [*OVERRIDES, *overrides], cwd=folder / "checkout", env={**environ, **ordered}, timeout=100
    )


def find_secrets(folder: Path, received: Iterable[bytes]) -> set[tuple[str, str]]:
    """Which secrets are where: in what the server got, or in a file that is not where the test has put it."""
    secret_files = (folder / "home" / ".netrc", folder / "checkout" / "mine.py", folder / "checkout" / ".git")
    places = {"the server": b"\n".join(received)}
    for file in folder.rglob("*"):
        if file.is_file() and not any(file.is_relative_to(secret_folder) for secret_folder in secret_files):
            places[str(file.relative_to(folder))] = read_content(file)
    return {
        (position, name)
        for position, content in places.items()
        for name in SECRETS
        if SECRETS[name].encode() in content
    }


def read_content(file: Path) -> bytes:
    """Its bytes; of a checkpoint and of arrays, those that are packed into it."""
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as packed:
        return b"\n".join(packed.read(name) for name in packed.namelist())


@dataclass
class OnlineRun:
    server: WandbServer
    folder: Path
    output: str

    @property
    def run(self) -> Run:
        (only,) = self.server.runs.values()
        return only


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnlineRun]:
    """A run of two ranks that was killed, and went on with one."""
    folder = tmp_path_factory.mktemp("online")
    with WandbServer() as server:
        environ = prepare_environment(folder) | server.environ
        killed = run(folder, environ, *RANKS, at="on_train_batch_end", step=25, rank=0)
        assert killed.returncode == -9, killed.stderr
        result = run(folder, environ)
        assert result.returncode == 0, result.stderr
        yield OnlineRun(server, folder, result.stdout)


def test_ranks_and_attempts_are_one_run_with_each_step_once(online: OnlineRun):
    assert online.server.unknown_operations == []
    record = json.loads((online.folder / "checkout/runs/run/run.json").read_text())
    assert online.run.name == record["id"]
    assert online.run.inserts == 1
    assert f"W&B: {online.server.url}/someone/stormproof/runs/{record['id']}" in online.output
    assert "warning: W&B" not in online.output
    steps = [row["_step"] for row in online.run.history]
    assert steps == sorted(set(steps))
    assert all(row["step"] == row["_step"] for row in online.run.history)
    logged = read_metrics(online.folder / "checkout/runs/run/metrics.csv")
    changing = ("time/", "checkpoint/", "recovery/")  # which the second attempt measured anew for steps that were there
    compared_names = [name for name in logged if not name.startswith((*changing, "epoch"))]
    assert {"train/loss", "val/accuracy", "test/accuracy", "gradients/norm"} < set(compared_names)
    for name in compared_names:
        assert online.run.values(name) == pytest.approx(dict(logged[name])), name
    assert len(online.run.values("train/loss")) == 40
    assert list(online.run.values("recovery/restarts").values()) == [1]


def test_what_a_person_looks_for_is_there(online: OnlineRun):
    variables, config, summary = online.run.variables, online.run.config, online.run.summary
    assert variables["groupName"] == "a-group"
    assert variables["jobType"] == "train"
    assert variables["tags"] == ["a-tag"]
    assert config["git"]["value"] == {"commit": variables["commit"], "dirty": True}
    assert config["size"]["value"] == {"parameters": 6634, "bytes": 4 * 6634}
    assert config["optimizer"]["value"]["betas"] == [0.9, 0.999]
    metrics = {entry.get("1", entry.get("2")): entry for entry in config["_wandb"]["value"]["m"]}
    assert {"step", "epoch", "*", "val/accuracy", "train/loss"} <= metrics.keys()
    logged = read_metrics(online.folder / "checkout/runs/run/metrics.csv")
    for name, better in {"val/accuracy": max, "val/loss": min, "train/loss": min}.items():
        values = [value for _, value in logged[name]]
        assert summary[name] == {"best": pytest.approx(better(values)), "last": pytest.approx(values[-1])}
    evaluation = json.loads((online.folder / "checkout/runs/run/evaluation.json").read_text())
    accuracy = evaluation["headline"]["accuracy"]
    assert [summary[f"test/accuracy{end}"] for end in ("", "/low", "/high")] == pytest.approx(
        [accuracy[end] for end in ("value", "low", "high")]
    )
    charts = config["_wandb"]["value"]["visualize"]
    assert charts.keys() == {"test/confusion", "test/roc", "test/precision_recall", "test/reliability"}
    tables = {entry.collection.split("-")[2]: entry for entry in online.server.artifacts if entry.type == "run_table"}
    assert {"findings", "testconfusion_table", "testroc_table"} <= tables.keys()
    lines = (online.folder / "checkout/runs/run/findings.jsonl").read_text().splitlines()
    problems = {entry["problem"].upper() for entry in map(json.loads, lines) if entry["severity"] != "info"}
    assert {entry["title"] for entry in online.server.alerts} == problems >= {"DEAD_UNITS"}
    assert {entry["waitDuration"] for entry in online.server.alerts} == {60_000}  # the server sends one of a title
    assert all(entry.committed for entry in online.server.artifacts)
    (checkpoints,) = (entry for entry in online.server.artifacts if entry.type == "model")
    store = Store(online.folder / "checkout/runs/run/checkpoints")
    best = Retention(save_top_k=2, mode="max").sort_by_score(store.read_checkpoints())[:2]
    files = [file for entry in best for file in (entry.path, entry.manifest_path)]
    assert checkpoints.files == {file.name: file.read_bytes() for file in files}


def test_no_secret_is_sent_or_written(online: OnlineRun, tmp_path: Path):
    assert find_secrets(online.folder, online.server.requests) == set()
    assert SECRETS["argument"] not in online.output
    with WandbServer() as server:
        result = run(
            tmp_path, prepare_environment(tmp_path) | {"WANDB_BASE_URL": server.url}, "trainer.max_epochs=1", "-m"
        )
        assert result.returncode == 0, result.stderr
        assert server.requests == []
    (files,) = tmp_path.glob("checkout/runs/run/wandb/offline-run-*")
    assert f"; to view it: wandb leet run {files.relative_to(tmp_path / 'checkout')}\n" in result.stdout
    assert find_secrets(tmp_path, []) == set()
    listed = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(next(files.glob("*.wandb")))],
        capture_output=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    records = [json.loads(line) for line in listed.stdout.splitlines()]
    metrics = {record["metric"].get("name", "*"): record["metric"] for record in records if record["type"] == "metric"}
    assert metrics["*"]["step_metric"] == "step"
    assert metrics["step"]["options"]["hidden"]
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record["summary"]["update"] if record["type"] == "summary" else {}
    assert summary["val/accuracy"].keys() == {"best", "last"}
    assert summary["test/accuracy/low"] < summary["test/accuracy"] < summary["test/accuracy/high"]

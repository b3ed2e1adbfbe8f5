"""Certifications of small training scripts in real processes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stormproof.cli import main
from stormproof.replay.certification import Certification
from stormproof.replay.comparison.verdict import VerdictKind
from stormproof.replay.faults.fault import FaultKind
from stormproof.replay.not_certifiable import NotCertifiable
from stormproof.replay.pytest_plugin import Certified
from stormproof.replay.pytest_plugin import certify as _certify_fixture

certify = _certify_fixture  # as the plugin does in an environment in which this version is installed
pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, time
import torch
from torch.utils.data import DataLoader, TensorDataset

LOST = os.environ.get("LOST", "")
torch.manual_seed(0)
inputs = torch.randn(48, 8)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
step, start = 0, 0
files = sorted(name for name in os.listdir() if name.startswith("step") and name.endswith(".pt"))
if files and LOST != "everything":
    if LOST == "progress":
        time.sleep(100)
    for name in reversed(files):
        try:
            state = torch.load(name, weights_only=False)
            break
        except (RuntimeError, OSError):
            if LOST == "older files":
                raise
    model.load_state_dict(state["model"])
    if LOST != "optimizer":
        optimizer.load_state_dict(state["optimizer"])
    step, start = state["step"], state["step"]
    if LOST == "position":
        step = start = 0
random_state = state["random_state"] if step or LOST == "position" and files else torch.get_rng_state()
for epoch in range(start // 6, 4):
    order = torch.randperm(48, generator=torch.Generator().manual_seed(epoch)).tolist()
    loader = iter(DataLoader(TensorDataset(inputs), 8, sampler=order[8 * (step % 6):]))
    torch.set_rng_state(random_state)
    for (batch,) in loader:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        step += 1
        if step % 4 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save({**state, "random_state": torch.get_rng_state()}, "temporary")
            os.replace("temporary", f"step{step:03}.pt")
    random_state = torch.get_rng_state()
"""

Run = Callable[..., Certified]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(folder)
    return folder


def _certify(
    certify: Run, faults: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, lost: str = "", **options: Any
) -> Certified:
    monkeypatch.setenv("LOST", lost)
    return certify([sys.executable, "train.py"], faults=faults, budget=100.0, **options)


def _kinds(certification: Certification) -> dict[FaultKind, VerdictKind]:
    return {result.fault.kind: result.verdict.kind for result in certification.results}


def test_an_exact_script_is_exact_after_each_kind_of_fault(
    certify: Run, project: Path, monkeypatch: pytest.MonkeyPatch
):
    faults = ("epoch-end", "term", "mid-save", "torn", "full-disk", "before-rename")
    certified = _certify(certify, faults, monkeypatch)
    certified.assert_exact()
    assert _kinds(certified.certification).keys() == {FaultKind(name) for name in faults}, certified.text
    assert sorted(path.name for path in project.iterdir()) == ["train.py"]  # nothing was changed
    assert certified.certification.exact_count == len(certified.certification.results)


def test_a_lost_component_is_named(certify: Run, project: Path, monkeypatch: pytest.MonkeyPatch):
    certified = _certify(certify, ("kill",), monkeypatch, "optimizer", max_faults=1)
    components = {result.verdict.component for result in certified.certification.results}
    assert components == {"before/optimizer/AdamW"}
    with pytest.raises(AssertionError, match=r"optimizer \(AdamW\) differs"):
        certified.assert_exact()


def test_a_hanging_restart_and_a_refused_one_are_reported(certify: Run, project: Path, monkeypatch: pytest.MonkeyPatch):
    hung = _certify(certify, ("kill",), monkeypatch, "progress", max_faults=1, timeout=30.0)
    assert set(_kinds(hung.certification).values()) == {VerdictKind.HUNG}
    refused = _certify(certify, ("torn",), monkeypatch, "older files", max_faults=1, output=project.parent / "other")
    assert set(_kinds(refused.certification).values()) == {VerdictKind.REFUSED}
    assert all(result.is_safe for result in refused.certification.results)  # but not exact
    assert not refused.certification.is_exact


def test_a_command_that_ignores_its_checkpoints_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LOST", "everything")
    code = main.main(["certify", "--max-faults", "1", "--faults", "kill", "--", sys.executable, "train.py"])
    assert code == 2
    assert "ignores its checkpoints" in capsys.readouterr().err


def test_a_command_without_training_is_refused(certify: Run, project: Path):
    with pytest.raises(NotCertifiable, match="does not train"):
        certify([sys.executable, "-c", "import torch"])


def test_the_command_line_writes_the_reports(project: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--max-faults", "1", "--faults", "kill", "--json", "result.json", "--resume-command"]
    code = main.main(["certify", *options, f"{sys.executable} train.py", "--", sys.executable, "train.py"])
    assert (code, capsys.readouterr().out.splitlines()[-1]) == (
        0,
        "The command resumed exactly after 1 of 1 fault. Report: certify/report.html",
    )
    assert json.loads((project / "result.json").read_text())["exact"] is True
    names = {path.name for path in (project / "certify").iterdir()}
    assert names >= {"report.html", "report.json", "junit.xml", "badge.svg"}

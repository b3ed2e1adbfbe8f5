"""Files beside the checkpoints may be lost or damaged at any moment."""

import json
import shutil
from pathlib import Path

import pytest

from stormproof_train.config.identity import RunSpec, compute_identity
from stormproof_train.report.kit.page import render_html
from stormproof_train.report.one_run import run_page
from stormproof_train.report.output_files import is_report_current
from stormproof_train.report.run_files import read_run
from stormproof_train.report.write import collect_run_numbers
from stormproof_train.run.folder import RunFolder
from tests.support.checkpoint_files import make_store
from tests.support.forked_command import Command
from tests.support.run_folders import make_predictions, training_rows, write_run

SETTINGS = {"seed": 0, "runs_dir": "runs", "trainer": {"accumulate_grad_batches": 2}}
SPEC = RunSpec(SETTINGS, compute_identity(SETTINGS), "run")
DAMAGES = {"lost": None, "emptied": b"", "garbage": b"\x00\xff{", "another type": b"[1, 2]", "null": b"null"}
FILES = [
    "run.json",
    "summary.json",
    "config.yaml",
    "evaluation.json",
    "predictions.npz",
    "metrics.csv",
    "findings.jsonl",
]


def _damage(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def _finished_run(folder: Path) -> RunFolder:
    write_run(folder, rows=training_rows(60), settings=SETTINGS, predictions=make_predictions())
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"identity": SPEC.identity}))
    make_store(folder / "checkpoints", [0, 100])
    return RunFolder(folder.parent, folder.name)


@pytest.mark.filterwarnings("ignore:.*(is missing or damaged|is not a valid finding)")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_no_damaged_file_blocks_a_page_or_the_next_attempt(file: str, damage: str, tmp_path: Path):
    folder = _finished_run(tmp_path / "run")
    _damage(folder.path / file, DAMAGES[damage])
    assert "It finished" in render_html(run_page(collect_run_numbers(read_run(folder.path))))
    summary = folder.read_summary()
    if file in {"metrics.csv", "findings.jsonl"}:
        assert summary is not None
        assert not folder.reopen_if_incomplete(summary)
        return
    assert summary is None or folder.reopen_if_incomplete(summary)
    folder.begin_attempt(SPEC, "auto")
    assert folder.initial_sharding == (1, 2 if file == "run.json" else 1)
    folder.record_end("failed", "enough", 1, last_step=100)
    assert RunFolder(tmp_path, "run").read_settings() == SETTINGS
    record = RunFolder(tmp_path, "run").read_record()
    assert record is not None
    assert [attempt["number"] for attempt in record["attempts"]] == [1, 2]


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"[1, 2]"])
def test_a_report_that_is_not_complete_is_recognized(content: bytes | None, tmp_path: Path):
    folder = _finished_run(tmp_path / "run").path
    (folder / "report.html").write_text(render_html(run_page(collect_run_numbers(read_run(folder)))))
    assert is_report_current(folder)
    _damage(folder / "report.html", content)
    assert not is_report_current(folder)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGES, "half"])
def test_a_run_that_lost_all_files_beside_its_checkpoints_restores_them(damage: str, command: Command, tmp_path: Path):
    arguments = ("name=mine", "trainer.max_steps=20", "report=true", "logger=none")
    assert command(*arguments).returncode == 0
    run = tmp_path / "runs" / "mine"
    expected = json.loads((run / "summary.json").read_text())
    shutil.copytree(run, tmp_path / "before")
    for file in (entry for entry in list(run.iterdir()) if entry.is_file() and entry.suffix != ".lock"):
        _damage(file, file.read_bytes()[: file.stat().st_size // 2] if damage == "half" else DAMAGES[damage])
    (run / ".report.html.0123.tmp").touch()
    result = command(*arguments)
    assert (result.returncode, "is missing or damaged" in result.stderr) == (0, True)
    summary = json.loads((run / "summary.json").read_text())
    assert all(summary[key] == expected[key] for key in ("test", "validation", "steps", "intervals"))
    for name in ("config.yaml", "predictions.npz"):
        assert (run / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    assert is_report_current(run)
    assert not list(run.glob(".*.tmp"))
    (run / "report.html").unlink()
    (run / ".report.html.0123.tmp").touch()
    shutil.copytree(run, run.with_name("copy"))
    result = command("name=copy", *arguments[1:])
    assert "copy has already finished" in result.stdout
    assert "run folder: runs/copy\n" in result.stdout
    assert is_report_current(run.with_name("copy"))
    assert not list(run.with_name("copy").glob(".*.tmp"))
    refused = command(*arguments, "trainer.strategy=deepspeed")
    assert (refused.returncode, "DeepSpeed" in refused.stderr) == (2, True)

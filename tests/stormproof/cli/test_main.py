import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import Lease, Store
from stormproof.cli import main
from tests.support.checkpoint_files import commit_checkpoint, flip_bit, make_state, make_store

FOREIGN = "last.ckpt is not a checkpoint of CheckpointRecovery; to resume from it: stormproof adopt"


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit code, what was said, and what was complained of."""
    code = main.main([str(word) for word in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize("inside", [True, False], ids=["a folder of checkpoints", "a run folder"])
def test_verify_names_each_checkpoint_and_where_a_start_goes_on(
    inside: bool, store: Store, capsys: pytest.CaptureFixture[str]
):
    code, captured, _ = _run(capsys, "verify", store.folder if inside else store.folder.parent)
    assert code == 0
    assert captured.splitlines() == [
        "000003-step-30  good",
        "000002-step-20  good",
        "000001-step-10  good",
        "the next start resumes from 000003-step-30",
    ]


def test_verify_names_each_bad_one_with_its_reason(store: Store, capsys: pytest.CaptureFixture[str]):
    flip_bit(store.folder / "000001-step-10.ckpt")
    flip_bit(store.folder / "000003-step-30.json")
    for suffix in ("ckpt", "json"):
        (store.folder / f"000002-step-20.{suffix}").unlink()
    code, captured, _ = _run(capsys, "verify", store.folder)
    assert code == 74
    lines = captured.splitlines()
    assert lines[:3] == [
        "000003-step-30  bad: its manifest was changed after it was written",
        "000002-step-20  lost: it was committed, but its files are missing",
        "000001-step-10  bad: its content has changed since it was committed",
    ]
    assert lines[-1] == "there is no good checkpoint: the next start is refused"


def test_verify_tells_of_a_damaged_log_and_of_what_is_foreign(store: Store, capsys: pytest.CaptureFixture[str]):
    flip_bit(store.folder / "commits.log", 3)
    (store.folder / "last.ckpt").touch()
    code, captured, _ = _run(capsys, "verify", store.folder)
    assert code == 74
    assert re.search(r"^commits\.log +damaged: ", captured, re.MULTILINE)
    assert f"{FOREIGN} {store.folder / 'last.ckpt'}" in captured


def test_a_command_that_is_shown_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / "best model.ckpt").touch()
    for command in ("list", "doctor"):
        assert f"stormproof adopt '{folder / 'best model.ckpt'}'" in " ".join(_run(capsys, command, folder)[1].split())


def test_verify_where_nothing_is_to_verify_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "last.ckpt").touch()
    code, captured, complaint = _run(capsys, "verify", tmp_path)
    assert (code, captured) == (2, "")
    assert complaint.startswith(f"stormproof: {tmp_path} contains no checkpoint. last.ckpt is not a checkpoint of")


def test_list_shows_what_there_is(store: Store, capsys: pytest.CaptureFixture[str]):
    commit_checkpoint(store, 140, score=0.123456, attempt=2, finite=False)
    flip_bit(store.folder / "000001-step-10.ckpt")
    store.begin_attempt(store.resolve(verify_all=True))  # two are bad: a flipped one, and one that is not finite
    commit_checkpoint(store, 150, score=1e-9, attempt=0, adopted=True)
    flip_bit(store.folder / "000002-step-20.json")
    (store.folder / "last.ckpt").touch()
    code, captured, _ = _run(capsys, "list", store.folder)
    assert code == 0
    lines = captured.splitlines()
    assert lines[0].split() == ["checkpoint", "step", "epoch", "score", "size", "age", "attempt", "finite"]
    size = f"{(store.folder / '000005-step-150.ckpt').stat().st_size / 1000:.3g} kB"
    assert re.fullmatch(rf"000005-step-150 +150 +1 +1e-09 +{size} +\d+ s +- +yes", lines[1])
    assert re.fullmatch(rf"000003-step-30 +30 +0 +- +{size} +\d+ s +1 +yes", lines[2])
    assert lines[3:] == [
        "000005-step-150 was adopted from another tool",
        "000002-step-20 is bad: its manifest was changed after it was written",
        "000001-step-10 is in quarantine: its content has changed since it was committed",
        "000004-step-140 is in quarantine: it contains numbers that are not finite",
        f"{FOREIGN} {store.folder / 'last.ckpt'}",
    ]
    assert max(map(len, lines[:3])) <= 80


def test_list_shows_one_that_is_not_finite(store: Store, capsys: pytest.CaptureFixture[str]):
    commit_checkpoint(store, 40, finite=False)
    assert re.search(r"^000004-step-40 .* no$", _run(capsys, "list", store.folder)[1], re.MULTILINE)


def test_list_of_an_empty_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert _run(capsys, "list", tmp_path)[:2] == (0, f"{tmp_path} contains no checkpoint\n")


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1771, "1.77 kB"), (604_100_000, "604 MB"), (2.5e12, "2.5 TB")]
)
def test_a_size_is_three_digits(count: int, words: str):
    assert main._format_size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86400 * 30, "30 d")]
)
def test_an_age_is_one_unit(seconds: float, words: str):
    assert main._format_age(seconds) == words


@pytest.mark.parametrize("run_folder", [True, False])
def test_adopt_says_what_it_did(run_folder: bool, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "last.ckpt"
    torch.save(make_state(600), source)
    into = store.folder.parent if run_folder else store.folder
    code, captured, _ = _run(capsys, "adopt", source, "--into", into)
    assert code == 0
    assert captured.splitlines()[0] == (
        f"adopted as {store.folder / '000004-step-600.ckpt'}: step 600, epoch 6; {source} is unchanged"
    )
    assert "the next start resumes from it instead of 000003-step-30, but" in captured
    latest = store.latest_checkpoint()
    assert latest is not None
    assert latest.adopted


def test_adopt_goes_to_the_files_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(make_state(600), tmp_path / "last.ckpt")
    code, captured, _ = _run(capsys, "adopt", tmp_path / "last.ckpt")
    assert (code, Store(tmp_path).read_checkpoints()[0].step) == (0, 600)
    assert "the next start resumes from it, but not bit for bit" in captured


MISTAKES = {
    "no command": ([], "the following arguments are required: COMMAND"),
    "no such command": (["frobnicate"], "invalid choice: 'frobnicate'"),
    "no folder": (["list"], "the following arguments are required: DIR"),
    "a folder that is not there": (["list", "missing"], "missing does not exist: pass a folder of checkpoints"),
    "a file": (["verify", "file"], "file is not a folder: pass a folder of checkpoints"),
    "unsupported URL": (
        ["list", "hdfs://host/run"],
        "stormproof: hdfs://host/run is not the URL of a supported object store",
    ),
    "adopt nothing": (["adopt", "missing.ckpt"], "missing.ckpt is not a file"),
    "adopt no checkpoint": (["adopt", "file"], "file cannot be adopted: it is not a complete zip archive"),
    "adopt to an unsupported URL": (
        ["adopt", "file", "--into", "hdfs://host"],
        "stormproof: hdfs://host is not the URL of a supported object store",
    ),
    "doctor of nothing": (["doctor", "missing"], "missing does not exist"),
}


@pytest.mark.parametrize(("words", "complaint"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    code, captured, complained = _run(capsys, *words)
    assert (code, captured) == (2, "")
    assert complained.startswith("stormproof: ")
    assert complaint in complained
    assert complained.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_use_is_not_adopted_into(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(make_state(600), tmp_path / "last.ckpt")
    lease = Lease(store.folder)
    try:
        code, _, complaint = _run(capsys, "adopt", tmp_path / "last.ckpt", "--into", store.folder)
    finally:
        lease.release()
    assert code == 2
    assert f"is in use by process {os.getpid()}" in complaint


def test_an_error_of_the_disk_is_one_sentence_and_74(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def failing(store: Store) -> None:
        raise OSError(5, "Input/output error", str(store.folder))

    monkeypatch.setattr("stormproof.cli.main.list_store", failing)
    assert _run(capsys, "list", store.folder) == (74, "", f"stormproof: {store.folder}: Input/output error\n")


def test_doctor_numbers_what_it_finds_in_the_width_of_the_terminal(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flip_bit(store.folder / "000003-step-30.ckpt")
    (store.folder / "last.ckpt").touch()
    monkeypatch.setattr("stormproof.cli.doctor.file_system_risks", lambda folder: [])
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        code, captured, _ = _run(capsys, "doctor", store.folder.parent)
        assert code == 1
        lines = captured.splitlines()
        assert lines[0] == "1. a checkpoint is damaged"
        assert lines[1].split() == ["where", str(store.folder / "000003-step-30.ckpt")]
        assert lines[2] == "   why   its content has changed since it was committed"
        assert "2. last.ckpt: saved by Lightning's ModelCheckpoint" in lines
        assert lines[-1] == "2 risks found"
        assert max(len(line) for line in lines if "/" not in line) <= width


def test_doctor_without_a_folder_looks_at_the_installation(capsys: pytest.CaptureFixture[str]):
    assert _run(capsys, "doctor") == (0, "no risks found\n", "")


def test_doctor_reports_an_unsupported_url(capsys: pytest.CaptureFixture[str]):
    code, captured, _ = _run(capsys, "doctor", "hdfs://host/run")
    assert code == 1
    assert captured.startswith("1. the URL cannot be used\n   where hdfs://host/run\n")


def _process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("stormproof")), *map(str, arguments)]
    return subprocess.run(command, check=False, **{"capture_output": True, "text": True, "timeout": 60, **options})


@pytest.mark.slow
def test_the_command_is_installed_and_its_exit_code_is_that_of_the_process(store: Store):
    good = _process("verify", store.folder)
    assert (good.returncode, good.stderr) == (0, "")
    flip_bit(store.folder / "000002-step-20.ckpt")
    assert _process("verify", store.folder).returncode == 74
    mistake = _process("verify", "missing", cwd=store.folder)
    assert (mistake.returncode, mistake.stdout) == (2, "")
    assert mistake.stderr.startswith("stormproof: missing does not exist")
    assert mistake.stderr.count("\n") == 1


def test_list_imports_neither_torch_nor_lightning(store: Store):
    code = (
        "import sys; from stormproof.cli.main import main; main(['list', sys.argv[1]])\n"
        "print([name for name in ('torch', 'pytorch_lightning', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert "000003-step-30" in result.stdout


def test_a_reader_that_leaves_is_no_error(store: Store):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = _process("list", store.folder, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_the_exit_code_does_not_depend_on_standard_error(tmp_path: Path):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        result = _process("list", tmp_path / "missing", capture_output=False, stderr=full)
    assert result.returncode == 2

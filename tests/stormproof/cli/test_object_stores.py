"""The commands on the URL of an object store."""

import socket
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import Store
from stormproof.checkpoint.lease import Lease
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.cli import main as cli
from tests.support.checkpoint_files import make_state
from tests.support.object_stores import flip_object_bit, make_object_store, overwrite


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_and_verify(s3_url: str, capsys: pytest.CaptureFixture[str]):
    storage = ObjectStorage(s3_url)
    make_object_store(storage)
    code, captured, _ = _run(capsys, "list", s3_url)
    assert code == 0
    assert [line.split()[0] for line in captured.splitlines()] == [
        "checkpoint", "000003-step-30", "000002-step-20", "000001-step-10"
    ]  # fmt: skip
    code, captured, complaint = _run(capsys, "verify", s3_url)
    assert (code, complaint) == (0, "")
    assert captured.splitlines() == [
        "000003-step-30  good",
        "000002-step-20  good",
        "000001-step-10  good",
        "the next start resumes from 000003-step-30",
    ]
    flip_object_bit(storage, "000003-step-30.ckpt")
    code, captured, _ = _run(capsys, "verify", s3_url)
    assert code == 74
    assert captured.startswith("000003-step-30  bad: its content has changed since it was committed\n")


def test_an_empty_prefix(s3_url: str, capsys: pytest.CaptureFixture[str]):
    assert _run(capsys, "list", s3_url) == (0, f"{s3_url} contains no checkpoint\n", "")
    assert _run(capsys, "verify", s3_url) == (2, "", f"stormproof: {s3_url} contains no checkpoint\n")


def test_a_file_of_another_tool_is_named(s3_url: str, capsys: pytest.CaptureFixture[str]):
    overwrite(ObjectStorage(s3_url), "last.ckpt", b"")
    assert f"download it and run: stormproof adopt last.ckpt --into {s3_url}" in _run(capsys, "list", s3_url)[1]


def test_adopt(s3_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(make_state(600), tmp_path / "last.ckpt")
    make_object_store(ObjectStorage(s3_url))
    code, captured, _ = _run(capsys, "adopt", tmp_path / "last.ckpt", "--into", s3_url)
    assert code == 0
    assert captured.startswith(f"adopted as {s3_url}/000004-step-600.ckpt: step 600, epoch 6; ")
    latest = Store(ObjectStorage(s3_url)).latest_checkpoint()
    assert latest is not None
    assert latest.adopted


def test_a_prefix_in_use_is_not_adopted_into(s3_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save(make_state(600), tmp_path / "last.ckpt")
    lease = Lease(ObjectStorage(s3_url))
    try:
        code, _, complaint = _run(capsys, "adopt", tmp_path / "last.ckpt", "--into", s3_url)
    finally:
        lease.release()
    assert code == 2
    assert f"{s3_url} is in use by process" in complaint


def test_doctor(s3_url: str, capsys: pytest.CaptureFixture[str]):
    storage = ObjectStorage(s3_url)
    make_object_store(storage)
    before = sorted(entry.name for entry in storage.list())
    assert _run(capsys, "doctor", s3_url) == (0, "no risks found\n", "")
    flip_object_bit(storage, "000003-step-30.ckpt")
    code, captured, _ = _run(capsys, "doctor", s3_url)
    assert code == 1
    assert captured.startswith(f"1. a checkpoint is damaged\n   where {s3_url}/000003-step-30.ckpt\n")
    assert sorted(entry.name for entry in storage.list()) == before


def test_doctor_reports_a_store_without_conditional_writes(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ObjectStorage, "put_if_absent", lambda self, name, content: overwrite(self, name, content) or 1)
    monkeypatch.setattr(
        ObjectStorage, "compare_and_swap", lambda self, name, content, version: overwrite(self, name, content) or "1"
    )
    code, captured, _ = _run(capsys, "doctor", s3_url)
    assert code == 1
    assert "1. the store does not support conditional creation" in captured
    assert "2. the store does not support conditional replacement" in captured


@pytest.mark.usefixtures("s3_server")
@pytest.mark.parametrize("command", ["list", "verify", "doctor"])
def test_an_error_of_the_store_is_one_sentence(
    command: str, s3_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cli, "RETRY_SECONDS", 0.1)
    assert _run(capsys, command, "s3://missing-bucket/run") == (
        74,
        "",
        "stormproof: s3://missing-bucket/run: the bucket does not exist; create it or correct the URL\n",
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        code, captured, complaint = _run(capsys, command, s3_url)
    assert (code, captured, complaint.count("\n")) == (74, "", 1)
    assert complaint.startswith(f"stormproof: {s3_url}: the object store cannot be reached; check the network")

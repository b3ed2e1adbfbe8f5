"""Whose compression a folder holds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.settings import Settings
from stormproof_train.errors import UserError


@pytest.fixture
def original(tmp_path: Path) -> Any:
    (tmp_path / "weights.ckpt").write_bytes(b"weights")
    trained = SimpleNamespace(run=SimpleNamespace(name="run"), checkpoint=tmp_path / "weights.ckpt")
    return SimpleNamespace(trained_weights=trained, plan=SimpleNamespace(settings=lambda _: {"optimizer": {"lr": 0.1}}))


def _begin_folder(original: Any, tmp_path: Path, **settings: Any) -> None:
    compress_settings = Settings("runs/run", budget="1pp", folder=str(tmp_path / "compressed"), **settings)
    with CompressionFolder(compress_settings, original).acquire():
        pass


def test_one_that_prunes_joins_one_that_does_not_and_then_only_those_that_prune_alike(original: Any, tmp_path: Path):
    _begin_folder(original, tmp_path, methods=["int8"])
    _begin_folder(original, tmp_path, methods=["int8"], minimize="size")
    _begin_folder(original, tmp_path, minimize="size")
    _begin_folder(original, tmp_path, minimize="macs")
    _begin_folder(original, tmp_path, methods=["int8"])
    with pytest.raises(
        UserError, match=r"artifacts of another compression: pruned in blocks of \(minimize\): 1 -> 16\. Use another"
    ):
        _begin_folder(original, tmp_path, minimize="latency")


def test_one_that_is_taught_joins_none_that_is_not(original: Any, tmp_path: Path):
    _begin_folder(original, tmp_path, methods=["prune"])
    with pytest.raises(UserError, match=r"artifacts of another compression: distill: False -> True\."):
        _begin_folder(original, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"checkpoint": "a"}'])
def test_a_copy_replaces_a_damaged_file(content: str, original: Any, tmp_path: Path):
    _begin_folder(original, tmp_path)
    folder = tmp_path / "compressed" / "run"
    expected = (folder / "compress.json").read_text()
    (folder / "compress.json").write_text(content)
    _begin_folder(original, tmp_path)
    assert (folder / "compress.json").read_text() == expected
    (folder / "artifacts" / "pruned-2x").mkdir()
    for name in ("compress.json", ".compress.json.copy"):
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=r"is missing or damaged\. Delete the folder, or give another name \(name=…\)"):
        _begin_folder(original, tmp_path)

"""Runs on a folder of images whose files change."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.support import forked_command
from tests.support.image_trees import write_pets


@pytest.mark.slow
def test_a_repaired_image_is_not_another_run_and_a_missing_one_is(tmp_path: Path):
    images = write_pets(tmp_path / "photos", 10)
    original_bytes = {file: file.read_bytes() for file in images.rglob("*.png")}
    overrides = ["data=image_folder", "data.path=photos", "data.image_size=8", "data.batch_size=8", "name=mine"]
    overrides += ["callbacks=none", "trainer.max_epochs=1", "logger=none", "report=false"]

    def run(*arguments: str) -> tuple[int, str]:
        result = forked_command.run(list(arguments), cwd=tmp_path, env=os.environ, timeout=200)
        return result.returncode, result.stdout + result.stderr

    _rewrite_all(original_bytes, lambda file: file.write_bytes(file.read_bytes()[:60]))
    code, message = run(*overrides)
    assert (code, (tmp_path / "runs").exists()) == (2, False)
    assert "Repair or remove it" in message
    _rewrite_all(original_bytes, lambda file: file.write_bytes(original_bytes[file]))
    assert run(*overrides)[0] == 0
    _rewrite_all(list(original_bytes)[:3], lambda file: Image.open(file).save(file, compress_level=0))
    code, message = run(*overrides)
    assert (code, "mine has already finished" in message) == (0, True)
    code, message = run("evaluate", "checkpoint=runs/mine")
    assert code == 0, message
    assert "3 of 30 images have changed in size since the run began" in message
    _rewrite_all(original_bytes, lambda file: Image.new("RGB", (9, 9), hash(file.name) % 2**24).save(file))
    for arguments in (overrides, ["evaluate", "checkpoint=runs/mine"]):
        code, message = run(*arguments)
        assert (code, "used other images with the same names (30 of 30 compared files differ)" in message) == (
            2,
            True,
        ), message
    _rewrite_all(original_bytes, lambda file: file.write_bytes(original_bytes[file]))
    (images / "cat/000.png").unlink()
    for arguments, sentence in (
        (overrides, "data.fingerprint: "),
        (["evaluate", "checkpoint=runs/mine"], "the data has changed since"),
    ):
        code, message = run(*arguments)
        assert (code, sentence in message) == (2, True), message


def _rewrite_all(files: list[Path] | dict[Path, bytes], change: Callable[[Path], object]) -> None:
    for file in files:
        change(file)

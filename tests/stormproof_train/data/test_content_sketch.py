"""A run is refused if its images were replaced by others of the same names."""

from pathlib import Path

import pytest
from PIL import Image

from stormproof_train.config.identity import RunSpec
from stormproof_train.data.content_sketch import MAX_FILES, check_files_unchanged, compute_content_sketch, save_sketch
from stormproof_train.data.image_folder import ImageFolder
from stormproof_train.errors import ExitCode, UserError
from stormproof_train.main import _check_run_matches
from stormproof_train.run.folder import RunFolder
from tests.support.image_trees import write_pets


def repaint(files: list[Path]) -> None:
    for number, file in enumerate(files):
        Image.new("RGB", (9, 9), (number, 7, 7)).save(file)


def test_up_to_half_of_the_images_may_have_been_repaired(tmp_path: Path):
    folder = write_pets(tmp_path / "photos", 10)
    files = sorted(folder.rglob("*.png"))
    save_sketch(tmp_path, ImageFolder(str(folder)))
    repaint(files[: len(files) // 2])
    check_files_unchanged(tmp_path, ImageFolder(str(folder)))
    repaint(files)
    with pytest.raises(
        UserError, match=rf"\({len(files)} of {len(files)} compared files differ\)\. Restore the previous images"
    ):
        check_files_unchanged(tmp_path, ImageFolder(str(folder)))


def test_a_sketch_has_at_most_64_files_and_survives_unreadable_ones(tmp_path: Path):
    files = [str(tmp_path / f"{number:03}") for number in range(1000)]
    assert compute_content_sketch(files) == [0] * MAX_FILES


@pytest.mark.parametrize("content", [None, "", "{}", '{"sketch": [1]}'])
def test_a_lost_sketch_is_a_warning(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "files.json").write_text(content)
    with pytest.warns(UserWarning, match=r"files.json is missing or damaged\. Whether the images have changed is not"):
        check_files_unchanged(tmp_path, ImageFolder(str(write_pets(tmp_path / "pets", 10))))


def test_a_run_that_never_trained_is_not_compared(tmp_path: Path):
    run = RunFolder(tmp_path / "runs", "mine")
    run.begin_attempt(RunSpec({"data": {"_target_": "a"}}, "", "mine"), "auto")
    save_sketch(run.path, ImageFolder(str(write_pets(tmp_path / "few", 10))))
    run.record_end("failed", "out of memory", ExitCode.FAILED, None)
    other_folder = ImageFolder(str(write_pets(tmp_path / "many", 20)))
    _check_run_matches(RunFolder(tmp_path / "runs", "mine"), {"data": {"_target_": "b"}}, "auto", other_folder)

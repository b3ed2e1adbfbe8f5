"""A symbolic link that leads nowhere is named in the sentence of whatever needs the path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stormproof_train.config.identity import RunSpec
from stormproof_train.data.csv import CSV
from stormproof_train.data.image_folder import ImageFolder
from stormproof_train.errors import UserError
from stormproof_train.path_errors import describe_broken_link
from stormproof_train.run.folder import RunFolder


def _begin(path: Path) -> None:
    RunFolder(path, "mine").begin_attempt(RunSpec({}, "", "mine"), "auto")


def _begin_here(path: Path) -> None:
    RunFolder(path.parent, path.name).begin_attempt(RunSpec({}, "", "mine"), "auto")


USES: dict[str, Callable[[Path], Any]] = {
    "the folder of runs": _begin,
    "a run": _begin_here,
    "a table": lambda path: CSV(str(path), target="y"),
    "a folder of images": lambda path: ImageFolder(str(path)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize("below", ["", "below"])
@pytest.mark.parametrize(
    ("target", "message"),
    [("/nowhere/x", "a link to /nowhere/x, which does not exist"), ("link", "a link to itself")],
    ids=["to nothing", "to itself"],
)
def test_a_link_that_leads_nowhere_is_named(
    use: Callable[[Path], Any], below: str, target: str, message: str, tmp_path: Path
):
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UserError) as excinfo:
        use(tmp_path / "link" / below)
    assert f"{tmp_path / 'link'} is {message}" in str(excinfo.value)
    assert [file.name for file in tmp_path.iterdir()] == ["link"]


def test_other_paths_have_no_broken_link(tmp_path: Path):
    (tmp_path / "good").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "through a file").symlink_to(tmp_path / "file" / "below")  # which the error itself explains
    for path in ("good", "good/new", "missing", "file/below", "through a file"):
        assert describe_broken_link(tmp_path / path) is None

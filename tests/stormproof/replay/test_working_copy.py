import sys
from pathlib import Path

import pytest

from stormproof.replay.not_certifiable import NotCertifiable
from stormproof.replay.working_copy import copy_working_folder, move_paths, prepare_output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "x.bin").write_text("data")
    (folder / "train.py").write_text("code")
    (folder / "alias.py").symlink_to("train.py")
    return folder


def test_a_copy_has_all_files_but_the_output(source: Path):
    output = source / "certify"
    prepare_output(output, source)
    copy_working_folder(source, output / "scratch" / "work", output=output)
    work = output / "scratch" / "work"
    assert {path.name for path in work.iterdir()} == {"data", "train.py", "alias.py"}
    assert (work / "alias.py").is_symlink()
    (work / "data" / "x.bin").write_text("changed")
    assert (source / "data" / "x.bin").read_text() == "data"


def test_absolute_links_of_the_folder_lead_into_the_copy(source: Path, tmp_path: Path):
    (source / "last.ckpt").symlink_to(source / "data" / "x.bin")
    copy_working_folder(source, tmp_path / "deep" / "work", output=tmp_path / "out")
    (tmp_path / "deep" / "work" / "last.ckpt").write_text("changed")
    assert (source / "data" / "x.bin").read_text() == "data"
    assert (tmp_path / "deep" / "work" / "data" / "x.bin").read_text() == "changed"


def test_a_loop_of_links_is_copied(source: Path, tmp_path: Path):
    (source / "loop").symlink_to("loop")
    copy_working_folder(source, tmp_path / "work", output=tmp_path / "out")
    assert (tmp_path / "work" / "loop").readlink() == Path("loop")


def test_an_output_folder_that_contains_the_working_folder_is_refused(source: Path):
    with pytest.raises(NotCertifiable, match="contains the working folder"):
        prepare_output(source.parent, source)


def test_linked_paths_are_not_copied(source: Path, tmp_path: Path):
    copy_working_folder(source, tmp_path / "work", output=tmp_path / "out", links=[Path("data")])
    assert (tmp_path / "work" / "data").resolve() == source / "data"


def test_a_link_that_leaves_the_folder_is_refused_unless_it_is_named(source: Path, tmp_path: Path):
    (tmp_path / "big").mkdir()
    (source / "big").symlink_to(tmp_path / "big")
    with pytest.raises(NotCertifiable, match=r"^`big` is a symbolic link to a place outside .* --link big"):
        copy_working_folder(source, tmp_path / "work", output=tmp_path / "out")
    copy_working_folder(source, tmp_path / "work", output=tmp_path / "out", links=[Path("big")])
    assert (tmp_path / "work" / "big").resolve() == tmp_path / "big"


@pytest.mark.parametrize("link", ["missing", "../elsewhere", "."])
def test_a_link_that_is_not_below_the_folder_is_refused(link: str, source: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(NotCertifiable, match=r"^--link .* (does not exist|is not inside)"):
        copy_working_folder(source, tmp_path / "work", output=tmp_path / "out", links=[Path(link)])


def test_only_an_earlier_output_folder_is_overwritten(tmp_path: Path):
    prepare_output(tmp_path / "certify", tmp_path)
    (tmp_path / "certify" / "report.html").touch()
    prepare_output(tmp_path / "certify", tmp_path)
    assert not (tmp_path / "certify" / "report.html").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(NotCertifiable, match="was not created by certify"):
        prepare_output(tmp_path / "mine", tmp_path)


def test_paths_of_the_folder_become_paths_of_the_copy(source: Path):
    text = f"{source}/train.py:{source}:{source}2/other"
    assert move_paths(text, source, Path("/copy")) == f"/copy/train.py:/copy:{source}2/other"


@pytest.mark.parametrize(
    ("environment", "marker"), [(".venv", "pyvenv.cfg"), (".tox/py311", "pyvenv.cfg"), ("env", "conda-meta/history")]
)
def test_the_copy_links_to_environments_with_links_to_other_places(
    environment: str, marker: str, source: Path, tmp_path: Path
):
    interpreter = source / environment / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    (source / environment / marker).parent.mkdir(exist_ok=True)
    (source / environment / marker).touch()
    copy_working_folder(source, tmp_path / "work", output=tmp_path / "out")
    assert (tmp_path / "work" / environment).resolve() == source / environment
    assert (tmp_path / "work" / environment / "bin" / "python").exists()


def test_a_link_to_a_missing_place_outside_is_left_out(source: Path, tmp_path: Path):
    (source / "gone").symlink_to(tmp_path / "missing" / "data")
    (source / "data" / "inside").symlink_to(source / "missing")
    copy_working_folder(source, tmp_path / "work", output=tmp_path / "out")
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"data", "train.py", "alias.py"}
    assert (tmp_path / "work" / "data" / "inside").is_symlink()

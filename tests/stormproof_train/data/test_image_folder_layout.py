from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stormproof_train.data.image_folder import ImageFolder
from stormproof_train.errors import UserError
from tests.support.image_trees import write_images, write_pets
from tests.support.split_arrays import load_splits


def _pets(folder: Path, **arguments: Any) -> ImageFolder:
    return ImageFolder(str(folder), **{"image_size": 8, "batch_size": 8, **arguments})


def test_folders_of_splits_are_the_splits(tmp_path: Path):
    for split, count in (("train", 10), ("val", 3), ("test", 2)):
        write_pets(tmp_path / split, count)
    assert [len(targets) for _, targets in load_splits(_pets(tmp_path)).values()] == [30, 9, 6]
    (tmp_path / "val").rename(tmp_path / "validation")
    assert [len(targets) for _, targets in load_splits(_pets(tmp_path)).values()] == [30, 9, 6]


def test_splits_are_known_in_capitals(tmp_path: Path):
    for split, count in (("Train", 10), ("VAL", 3), ("Test", 2)):
        write_pets(tmp_path / split, count)
    data = _pets(tmp_path)
    assert data.classes == ["cat", "dog", "owl"]
    assert [len(targets) for _, targets in load_splits(data).values()] == [30, 9, 6]


def test_what_is_hidden_is_no_class_and_no_image(tmp_path: Path):
    plain = _pets(write_pets(tmp_path)).fingerprint
    for hidden in (tmp_path / ".ipynb_checkpoints", tmp_path / "cat" / ".ipynb_checkpoints"):
        write_images(hidden, 3, 9)
    (tmp_path / "cat" / "._000.png").write_text("of another system")
    data = _pets(tmp_path)
    assert data.classes == ["cat", "dog", "owl"]
    assert data.fingerprint == plain


def test_every_kind_of_image_is_read_and_what_is_left_out_is_told(tmp_path: Path):
    write_pets(tmp_path, 6)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.jfif", format="JPEG")
    Image.new("P", (8, 8)).save(tmp_path / "cat" / "b.GIF", save_all=True, append_images=[Image.new("P", (8, 8), 3)])
    assert sum(len(targets) for _, targets in load_splits(_pets(tmp_path)).values()) == 20
    for name in ("cat/notes.txt", "dog/LICENSE", "dog/1.txt"):
        (tmp_path / name).touch()
    with pytest.warns(
        UserWarning, match=r": 3 files are ignored because of the file name extension \(no extension, .txt\)"
    ):
        _pets(tmp_path)


def test_images_in_folders_of_a_class_and_behind_links_are_its_own_once(tmp_path: Path):
    write_pets(tmp_path, 6)
    write_images(tmp_path / "cat" / "kittens", 2, 70)
    write_images(tmp_path / "elsewhere" / "more", 3, 70)
    (tmp_path / "elsewhere" / "more").rename(tmp_path.parent / f"{tmp_path.name} more")
    (tmp_path / "elsewhere").rmdir()
    (tmp_path / "cat" / "more").symlink_to(tmp_path.parent / f"{tmp_path.name} more")
    (tmp_path / "cat" / "all").symlink_to(tmp_path)
    (tmp_path / "cat" / "kittens" / "up").symlink_to("..")
    (tmp_path / "cat" / "again").symlink_to("kittens")
    data = _pets(tmp_path)
    assert Counter(data.classes[label] for split in data._samples.values() for _, label in split) == {
        "cat": 11, "dog": 6, "owl": 6
    }  # fmt: skip


def test_a_split_without_a_folder_is_held_out_of_the_training_images(tmp_path: Path):
    write_pets(tmp_path / "train", 10)
    write_pets(tmp_path / "test", 2)
    assert [len(targets) for _, targets in load_splits(_pets(tmp_path, validation_fraction=0.3)).values()] == [21, 9, 6]


def test_a_class_that_testing_lacks_leaves_the_others_their_indices(tmp_path: Path):
    write_pets(tmp_path / "train", 10)
    write_images(tmp_path / "test" / "owl", 2, 180)
    assert load_splits(_pets(tmp_path))["test"][1].tolist() == [2, 2]


def test_a_class_called_train_is_a_class(tmp_path: Path):
    for name in ("bus", "train"):
        write_images(tmp_path / name, 8, 100)
    assert _pets(tmp_path).classes == ["bus", "train"]


def _no_class(folder: Path) -> None:
    (folder / "a.png").touch()


def _empty_class(folder: Path) -> None:
    write_pets(folder, 5)
    (folder / "emu").mkdir()
    (folder / "emu" / "notes.txt").touch()


def _one_class(folder: Path) -> None:
    write_images(folder / "cat", 5, 100)


def _small_class(folder: Path) -> None:
    write_pets(folder, 5)
    write_images(folder / "emu", 2, 100)


def _another_class(folder: Path) -> None:
    write_pets(folder / "train", 5)
    write_images(folder / "test" / "emu", 2, 100)


def _no_class_to_test(folder: Path) -> None:
    write_pets(folder / "train", 5)
    (folder / "test").mkdir()


def _another_split(folder: Path) -> None:
    write_pets(folder / "train", 5)
    write_pets(folder / "valid", 5)


def _validation_twice(folder: Path) -> None:
    write_pets(folder / "train", 5)
    write_pets(folder / "val", 5)
    write_pets(folder / "validation", 5)


def _splits_of_other_names(folder: Path) -> None:
    for split in ("fitting", "testing"):
        write_pets(folder / split, 5)
        (folder / split / ".DS_Store").touch()


def _training_twice(folder: Path) -> None:
    for split in ("Train", "train"):
        write_pets(folder / split, 5)


def _a_link_to_nothing(folder: Path) -> None:
    write_pets(folder, 5)
    (folder / "cat" / "gone.png").symlink_to("/nowhere/gone.png")


MISTAKES = {
    "splits of other names": (
        _splits_of_other_names,
        "{}/fitting contains no images, only folders (cat, dog, owl). Put the images of each",
    ),
    "a split twice": (_training_twice, "data.path={} contains both Train/ and train/. Remove one of them"),
    "a link to nothing": (
        _a_link_to_nothing,
        "data: the image {}/cat/gone.png, a link to /nowhere/gone.png, cannot be read (No such file or directory). R",
    ),
    "no class folder": (_no_class, "{} contains no folders. Create one folder per class"),
    "a class without images": (_empty_class, "{}/emu contains no images (.jpg, .jpeg, .png"),
    "one class only": (_one_class, "{}: all 5 samples have class 'cat'. Classification needs at least 2"),
    "a class too small": (_small_class, "{}: class 'emu' has 2 samples, but each of the 3 splits"),
    "another class to test": (_another_class, "{}/test/emu: class 'emu' is not in the training split: cat, dog"),
    "a test split of nothing": (_no_class_to_test, "{}/test contains no folders"),
    "a folder beside the splits": (
        _another_split,
        "contains the split train/ and also valid/, which is not one of train/",
    ),
    "two folders of validation": (
        _validation_twice,
        "data.path={} contains both val/ and validation/. Remove one of them",
    ),
}


@pytest.mark.parametrize(("lay", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_folders_that_are_not_as_they_should_be_are_one_sentence(lay: Any, sentence: str, tmp_path: Path):
    lay(tmp_path)
    with pytest.raises(UserError) as excinfo:
        _pets(tmp_path)
    assert sentence.format(tmp_path) in str(excinfo.value)


def test_a_folder_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^data.path=no does not exist \(from {tmp_path}\)$"):
        ImageFolder("no")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^data.path=file is not a folder"):
        ImageFolder("file")

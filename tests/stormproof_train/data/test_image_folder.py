import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from stormproof_train.data import image_folder
from stormproof_train.data.image_folder import ImageFolder
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from tests.support.image_trees import write_images, write_pets
from tests.support.split_arrays import load_splits, sort_rows
from tests.support.task_fits import IGNORE_LIGHTNING_WARNINGS, make_task, make_trainer

FORKS = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning", "ignore:.*suggested max number of worker.*"
)


def _pets(folder: Path, **arguments: Any) -> ImageFolder:
    return ImageFolder(str(folder), **{"image_size": 8, "batch_size": 8, **arguments})


def test_the_folders_are_the_classes_and_the_splits_are_stratified(tmp_path: Path):
    data = _pets(write_pets(tmp_path), validation_fraction=0.2, test_fraction=0.1)
    assert data.classes == ["cat", "dog", "owl"]
    assert data.spec == DataSpec((3, 8, 8), 3, 3, class_counts=(14, 14, 14))
    parts = load_splits(data)
    sizes = {name: Counter(targets.tolist()) for name, (_, targets) in parts.items()}
    assert sizes == {name: dict.fromkeys(range(3), count) for name, count in zip(parts, (14, 4, 2), strict=True)}
    files = [file for split in data._samples.values() for file, _ in split]
    assert len(files) == len(set(files)) == 60


@pytest.mark.parametrize("place", [".hidden", "../beside"])
def test_the_folder_may_lie_anywhere(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_pets(tmp_path / "here" / place)
    assert ImageFolder(place).classes == ["cat", "dog", "owl"]


def test_images_are_scaled_by_the_training_split_alone(tmp_path: Path):
    write_pets(tmp_path / "train", 10)
    write_images(tmp_path / "test" / "cat", 3, 250)
    parts = load_splits(_pets(tmp_path, image_size=10, seed=4))
    assert parts["train"][0].mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert parts["train"][0].std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], rel=1e-4)
    data = _pets(tmp_path, image_size=10, seed=4)
    pixels = np.stack([np.asarray(Image.open(file))[:, 1:11] / 255 for file, _ in data._samples["train"]])
    test = np.stack([np.asarray(Image.open(file))[:, 1:11] / 255 for file, _ in data._samples["test"]])
    expected = (test - pixels.mean(axis=(0, 1, 2))) / pixels.std(axis=(0, 1, 2))
    np.testing.assert_allclose(parts["test"][0].permute(0, 2, 3, 1).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_of_many_images_only_so_many_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = _pets(write_pets(tmp_path))._mean_std
    monkeypatch.setattr(image_folder, "MAX_STATISTICS_IMAGES", 6)
    first, repeated = _pets(tmp_path)._mean_std, _pets(tmp_path)._mean_std
    assert first == repeated != whole
    np.testing.assert_allclose(first, whole, atol=0.05)


@pytest.mark.parametrize("size", [(30, 12), (5, 40), (16, 16)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_size_and_mode_come_out_alike(mode: str, size: tuple[int, int], tmp_path: Path):
    write_pets(tmp_path, 6)
    Image.new(mode, size).save(tmp_path / "cat" / "other.tiff")
    for channels in (1, 3):
        data = _pets(tmp_path, channels=channels)
        assert all(inputs.shape[1:] == (channels, 8, 8) for inputs, _ in load_splits(data).values())


def test_a_channel_of_one_value_is_not_divided_by_nothing(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8), (number * 9, 7, 0)).save(tmp_path / name / f"{number}.png")
    for inputs, _ in load_splits(_pets(tmp_path, batch_size=2)).values():
        assert inputs.isfinite().all()


@pytest.mark.slow
@FORKS
def test_any_number_of_workers_gives_the_same_bits(tmp_path: Path):
    write_pets(tmp_path)
    alone, helped = (load_splits(_pets(tmp_path, num_workers=workers)) for workers in (0, 2))
    for name, split in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(split, helped[name], strict=True))


@pytest.mark.slow
@FORKS
@pytest.mark.parametrize(("before", "after"), [(2, 2), (0, 2), (2, 0)])
def test_training_goes_on_at_the_very_batch_with_any_number_of_workers(before: int, after: int, tmp_path: Path):
    write_pets(tmp_path)
    first, second = (_pets(tmp_path, num_workers=workers, seed=5) for workers in (before, after))
    for data in (first, second):
        data.setup("fit")
    loader = first.train_dataloader()
    list(loader)
    batches = iter(loader)  # of the second epoch
    for _ in range(2):
        next(batches)
    state = loader.state_dict()
    expected = list(batches)
    resumed = second.train_dataloader()
    resumed.load_state_dict(state)
    for (inputs, targets), (same_inputs, same_targets) in zip(expected, resumed, strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)


def test_the_seed_fixes_the_splits(tmp_path: Path):
    write_pets(tmp_path)
    first, repeated, other_seed = (load_splits(_pets(tmp_path, seed=seed)) for seed in (1, 1, 2))
    for name, split in first.items():
        np.testing.assert_array_equal(sort_rows(split), sort_rows(repeated[name]))
    assert not np.array_equal(sort_rows(first["test"]), sort_rows(other_seed["test"]))


def _re_encode(file: Path) -> None:
    """Rewrites an image without compression, so that its file has another size."""
    image = Image.open(file)
    image.load()
    image.save(file, compress_level=0)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize("change", [_re_encode, _truncate])
def test_the_content_and_the_place_of_images_do_not_make_another_data_set(
    change: Callable[[Path], None], tmp_path: Path
):
    fingerprint = _pets(write_pets(tmp_path / "here")).fingerprint
    assert _pets(write_pets(tmp_path / "there")).fingerprint == fingerprint
    change(tmp_path / "here/cat/000.png")
    assert _pets(tmp_path / "here").fingerprint == fingerprint


CHANGED_SETS = {
    "added": lambda folder: shutil.copy(folder / "train/cat/000.png", folder / "train/cat/new.png"),
    "removed": lambda folder: (folder / "train/cat/000.png").unlink(),
    "renamed": lambda folder: (folder / "train/cat/000.png").rename(folder / "train/cat/zero.png"),
    "moved to another class": lambda folder: (folder / "train/cat/000.png").rename(folder / "train/dog/zero.png"),
    "moved to another split": lambda folder: (folder / "train/cat/000.png").rename(folder / "test/cat/zero.png"),
    "a renamed class": lambda folder: (folder / "train/owl").rename(folder / "train/emu"),
}


@pytest.mark.parametrize("change", CHANGED_SETS.values(), ids=CHANGED_SETS.keys())
def test_another_set_of_images_is_another_data_set(change: Callable[[Path], Any], tmp_path: Path):
    write_pets(tmp_path / "train", 10)
    write_images(tmp_path / "test" / "cat", 2, 60)
    before = _pets(tmp_path).fingerprint
    change(tmp_path)
    assert _pets(tmp_path).fingerprint != before


def _fit(folder: Path, data: ImageFolder, **options: Any) -> pl.Trainer:
    trainer, _ = make_trainer(folder, logger=False, **options)
    trainer.fit(make_task(data.load_spec()), datamodule=data, ckpt_path=_checkpoint(folder), weights_only=True)
    return trainer


def _checkpoint(folder: Path) -> str | None:
    return str(folder / "last.ckpt") if (folder / "last.ckpt").exists() else None


@IGNORE_LIGHTNING_WARNINGS
def test_a_resume_says_how_many_files_have_another_size_than_when_the_run_began(tmp_path: Path):
    images = write_pets(tmp_path / "images", 10)
    _fit(tmp_path, _pets(images)).save_checkpoint(tmp_path / "last.ckpt")
    _fit(tmp_path, _pets(images), max_epochs=2)  # without a warning, which would be an error
    for number in range(2):
        _re_encode(images / f"cat/00{number}.png")
    for epochs in (2, 3):  # since the run began, and not since it was resumed before
        data = _pets(images)
        with pytest.warns(UserWarning, match=r"^2 of 30 images have changed in size since the run began"):
            trainer = _fit(tmp_path, data, max_epochs=epochs)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        trainer.test(datamodule=data, ckpt_path=_checkpoint(tmp_path), weights_only=True, verbose=False)  # no warning
    (images / "cat/000.png").unlink()
    _fit(tmp_path, _pets(images), max_epochs=4)  # of another data set nothing can be said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image_size": 0}, "`image_size` must be at least 1 pixel, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"validation_fraction": 0.0}, "must be above 0 and have a sum below 1, got 0.0 and 0.15"),
        ({"test_fraction": 0.9}, "must be above 0 and have a sum below 1"),
    ],
)
def test_an_impossible_number_is_refused(arguments: dict[str, Any], sentence: str, tmp_path: Path):
    with pytest.raises(ValueError, match=sentence):
        _pets(write_pets(tmp_path, 6), **arguments)


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_told_by_its_path(workers: int, tmp_path: Path):
    write_pets(tmp_path, 10)
    data = _pets(tmp_path, num_workers=workers)
    data.setup("test")
    broken = Path(data._samples["test"][0][0])
    broken.write_bytes(broken.read_bytes()[:60])
    loader = data.test_dataloader()
    with pytest.raises(UserError) as excinfo:
        list(loader)
    if workers:  # they would wait five seconds for the garbage collector to end them
        loader._iterator._shutdown_workers()
    assert str(excinfo.value).startswith(f"data: the image {broken} cannot be read (")
    assert "\n" not in str(excinfo.value)


def test_an_image_of_sixteen_bits_is_not_made_white(tmp_path: Path):
    write_pets(tmp_path, 10)
    deep = tmp_path / "cat" / "000.png"
    Image.new("I;16", (8, 8)).save(deep)
    data = _pets(tmp_path)
    with pytest.raises(UserError, match=r"000.png has more than 8 bits per channel. Convert it to 8.$"):
        load_splits(data)


def test_images_that_measure_nothing_usable_are_told_when_the_run_begins(tmp_path: Path):
    write_pets(tmp_path, 10)
    for file in tmp_path.rglob("*.png"):
        file.write_text("no image")
    data = _pets(tmp_path)
    with pytest.raises(UserError, match=r"^data: the image .*cannot be read \(cannot identify image file"):
        data.setup("fit")


def _break(data: ImageFolder, split: str, number: int = 0) -> Path:
    """Truncates an image of a split, whose header stays readable."""
    file = Path(data._samples[split][number][0])
    _truncate(file)
    return file


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_broken_image_that_is_held_out_is_found_before_training(split: str, tmp_path: Path):
    data = _pets(write_pets(tmp_path, 10))
    broken = _break(data, split)
    with pytest.raises(UserError, match=rf"^data: the image {broken} cannot be read \("):
        data.load_spec()


def test_all_broken_images_are_counted(tmp_path: Path):
    data = _pets(write_pets(tmp_path, 20))
    for number in range(3):
        _break(data, "test", number)
    with pytest.raises(UserError, match=r" \(and 2 other images\)$"):
        data.load_spec()


def test_a_broken_training_image_is_found_before_training_on_request(tmp_path: Path):
    write_pets(tmp_path, 10)
    broken = _break(_pets(tmp_path), "train", 7)
    with pytest.raises(UserError, match=rf"the image {broken} cannot be read"):
        _pets(tmp_path, verify="all").load_spec()


def test_a_rank_that_lightning_starts_leaves_verifying_to_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = _pets(write_pets(tmp_path, 10))
    _break(data, "test")
    monkeypatch.setenv("LOCAL_RANK", "1")
    data.load_spec()


@pytest.mark.parametrize("below", ["dog", "test/dog"])
def test_a_class_that_is_a_broken_link_is_refused(below: str, tmp_path: Path):
    for split in ("train", "test"):
        write_pets(tmp_path / split, 10)
    missing = tmp_path / ("test" if below.startswith("test") else "train/dog")
    shutil.rmtree(missing)
    missing.symlink_to("/nowhere/at all")
    with pytest.raises(UserError, match=f"{missing} is a link to /nowhere/at all, which does not exist. Remove or rep"):
        ImageFolder(str(tmp_path))

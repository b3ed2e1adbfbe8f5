"""Images of the user's own, a folder a class."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.distributed.collectives import run_on_rank_zero
from stormproof.distributed.rank import is_rank_zero
from stormproof_train.data.class_sizes import check_class_sizes
from stormproof_train.data.content_sketch import compute_content_sketch
from stormproof_train.data.image_file import ImageDataset, check_images
from stormproof_train.data.image_folder_layout import (
    compute_fingerprint,
    find_split_folders,
    list_classes,
    list_samples,
    read_file_sizes,
)
from stormproof_train.data.spec import DataSpec, add_target_statistics
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.data.splits import split_three_ways
from stormproof_train.launcher import detect_launcher

MAX_STATISTICS_IMAGES = 1_000
"""Images of the training split, evenly picked, whose mean and standard deviation scale all."""


class ImageFolder(SplitDataModule):
    """Images in folders, each folder a class, read from the disk when a batch wants them.

    ``path`` holds the classes, or ``train/`` with the classes in it and beside it ``val/`` (or ``validation/``) and
    ``test/``, which are the splits then. What is not there is held out of the training images, stratified. What is
    hidden (``.ipynb_checkpoints``) is left out; of a GIF the first image is taken. The shorter side is resized to
    ``image_size`` and the middle cut out. Each channel is scaled to mean 0 and standard deviation 1 over the training
    split, or over 1,000 images of it where it has more, whenever a run begins.

    The paths of the images below ``path`` are part of a run's identity. Their content is not. A resume is exact if no
    file has changed. A warning states how many file sizes differ from the start of the run. A run is refused if most
    images have changed.

    Args:
        path: the folder, absolute or below the working directory.
        image_size: height and width, in pixels, at least 1.
        channels: 3 for red, green and blue, 1 for grey.
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        validation_fraction: share of the images, in (0, 1); without effect where validation has a folder.
        test_fraction: share of them, in (0, 1), with the above less than 1; without effect where testing has a folder.
        num_workers: loader processes of each rank, at least 0.
        drop_last: leaves an epoch's last, smaller training batch out.
        verify: Images that rank 0 reads once before training: ``held_out`` for validation and test images, ``all`` for
            all images.
        seed: fixes the split and the order of the training samples.

    Attributes:
        classes: the names of the classes, sorted, in the order of their indices.
        fingerprint: Hash of the paths of the images below ``path``, in 16 hex digits.

    Raises:
        ValueError: if a number is out of its range.
        UserError: if the folders are not as above, a class is too small to be split, or an image cannot be read.
    """

    def __init__(
        self,
        path: str,
        image_size: int = 64,
        channels: Literal[1, 3] = 3,
        batch_size: int = 64,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.15,
        num_workers: int = 0,
        drop_last: bool = False,
        verify: Literal["held_out", "all"] = "held_out",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)
        if image_size < 1:
            raise ValueError(f"image_size is {image_size} pixels; it must be at least 1")
        root = Path(path).expanduser()
        folders = find_split_folders(root)
        self.classes = list_classes(folders["train"])
        samples = {split: list_samples(folder, list_classes(folder), self.classes) for split, folder in folders.items()}
        self.fingerprint = compute_fingerprint(root, samples)
        self._file_sizes = torch.tensor(read_file_sizes(samples))
        self._files = [file for split in sorted(samples) for file, _ in samples[split]]
        self._initial_file_sizes = self._file_sizes  # when the run began
        labels = np.array([label for _, label in samples["train"]])
        check_class_sizes(str(folders["train"]), self.classes, labels, num_splits=4 - len(folders))
        train, validation, test = split_three_ways(
            len(labels),
            None if "validation" in folders else validation_fraction,
            None if "test" in folders else test_fraction,
            seed,
            labels,
        )
        train_samples = samples["train"]
        self._samples = {
            "validation": [train_samples[row] for row in validation],
            "test": [train_samples[row] for row in test],
            **samples,
            "train": [train_samples[row] for row in train],
        }
        self._verifies_all = verify == "all"
        self._image_size = image_size
        self._channels: Literal[1, 3] = channels
        spec = DataSpec((channels, image_size, image_size), len(self.classes), num_outputs=len(self.classes))
        self.spec = add_target_statistics(spec, torch.tensor([label for _, label in self._samples["train"]]))

    def load(self) -> tuple[ImageDataset, ImageDataset]:
        """The training and the validation split, once images are verified."""
        if not detect_launcher() and is_rank_zero():
            self._verify()
        return self._make_dataset("train"), self._make_dataset("validation")

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, once.

        Ranks that torchrun or srun started verify images here, where they have a process group to share an error.
        """
        super().setup(stage)
        if stage == "fit" and detect_launcher() and self.trainer is not None:
            run_on_rank_zero(self._verify)

    def state_dict(self) -> dict[str, Any]:
        """Returns the file sizes with which the run began."""
        return {"fingerprint": self.fingerprint, "file_sizes": self._initial_file_sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns if files of the same data set have changed since the run began."""
        if state_dict["fingerprint"] != self.fingerprint:
            return
        initial_sizes = state_dict["file_sizes"]
        num_changed = int((self._file_sizes != initial_sizes).sum())
        if num_changed and not torch.equal(initial_sizes, self._initial_file_sizes):  # else it has warned
            rank_zero_warn(
                f"{num_changed:,} of {len(initial_sizes):,} images have changed in size since the run began. The "
                f"resumed run is "
                "not exact."
            )
        self._initial_file_sizes = initial_sizes

    def sketch(self) -> list[int]:
        """Returns checksums of some images, from which other images of the same names are recognized."""
        return compute_content_sketch(self._files)

    def load_test(self) -> ImageDataset:
        """The test split."""
        return self._make_dataset("test")

    @property
    def preparation(self) -> dict[str, Any]:
        """How an image file becomes an input, as :mod:`stormproof_train.predict.images` reads it."""
        mean, std = self._mean_std
        size = [self._image_size, self._image_size]
        return {"kind": "image", "channels": self._channels, "size": size, "white": 1.0, "mean": mean, "std": std}

    def _verify(self) -> None:
        splits = ("train", "validation", "test") if self._verifies_all else ("validation", "test")
        check_images([file for split in splits for file, _ in self._samples[split]])

    def _make_dataset(self, split: str) -> ImageDataset:
        mean, std = self._mean_std
        return ImageDataset(self._samples[split], self._image_size, self._channels, mean, std)

    @functools.cached_property
    def _mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in [0, 1]; a channel of one value is left at its size."""
        train = self._samples["train"]
        rows = np.linspace(0, len(train) - 1, min(len(train), MAX_STATISTICS_IMAGES)).astype(int)
        images = ImageDataset([train[row] for row in rows], self._image_size, self._channels)
        mean_sum, square_sum = torch.zeros(2, self._channels, dtype=torch.float64)
        for index in range(len(images)):
            values = images[index][0].double()
            mean_sum += values.mean(dim=(1, 2))
            square_sum += values.square().mean(dim=(1, 2))
        mean = mean_sum / len(images)
        variance = square_sum / len(images) - mean.square()
        std = torch.where(variance > 1e-12, variance.clamp(min=0).sqrt(), 1.0)
        return mean.tolist(), std.tolist()

"""Data module for a folder of images with one subfolder per class."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.distributed.collectives import run_on_rank_zero
from stormproof.distributed.rank import is_rank_zero
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
from stormproof_train.data.splits import check_class_sizes, split_three_ways
from stormproof_train.launcher import detect_launcher

MAX_STATISTICS_IMAGES = 1_000
"""Maximum number of evenly spaced training images for the mean and standard deviation."""


class ImageFolder(SplitDataModule):
    """Images in one folder per class, read from disk when a batch needs them.

    ``path`` contains either the class folders, or the split folders ``train/``, ``val/`` (or ``validation/``) and
    ``test/`` with class folders. Missing splits are held out of the training images, stratified by class. Hidden files
    and folders (``.ipynb_checkpoints``) are ignored. Only the first image of a GIF is used. The shorter side of an
    image is resized to ``image_size``, and the center is cropped. Each channel is scaled to mean 0 and standard
    deviation 1 over the training split, or over 1,000 of its images if there are more. This happens at each start of a
    run.

    The paths of the images below ``path`` are part of a run's identity. Their content is not. A resume is exact if no
    file has changed. A warning states how many file sizes differ from the start of the run. A run is refused if most
    images have changed.

    Args:
        path: Path of the folder, absolute or relative to the working directory.
        image_size: Height and width in pixels. Must be at least 1.
        channels: 3 for RGB, 1 for gray.
        batch_size: Samples per optimizer step, over all ranks and accumulated batches. Must be at least 1.
        validation_fraction: Fraction of the images, in (0, 1). Ignored if there is a validation folder.
        test_fraction: Fraction of the images, in (0, 1). The sum of both fractions must be below 1. Ignored if there is
            a test folder.
        num_workers: Loader processes per rank. Must be at least 0.
        drop_last: If True, drops the last batch of an epoch if it is smaller.
        verify: Images that rank 0 reads once before training: ``held_out`` for validation and test images, ``all`` for
            all images.
        seed: Seed of the split and of the order of the training samples.

    Attributes:
        classes: Sorted names of the classes, in the order of their indices.
        fingerprint: Hash of the paths of the images below ``path``, 16 hex digits.

    Raises:
        ValueError: If a number is out of range.
        UserError: If the folders do not have this layout, a class is too small to be split, or an image cannot be read.

    Example:
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     Path("pets", name).mkdir(parents=True)
        ...     for index in range(8):
        ...         Image.new("RGB", (12, 12), (30 * index, 0, 0)).save(f"pets/{name}/{index}.png")
        >>> data = ImageFolder("pets", image_size=8, validation_fraction=0.25, test_fraction=0.25)
        >>> data.classes, data.spec.input_shape
        (['cat', 'dog'], (3, 8, 8))
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
            raise ValueError(f"`image_size` must be at least 1 pixel, got {image_size}.")
        root = Path(path).expanduser()
        folders = find_split_folders(root)
        self.classes = list_classes(folders["train"])
        samples = {split: list_samples(folder, list_classes(folder), self.classes) for split, folder in folders.items()}
        self.fingerprint = compute_fingerprint(root, samples)
        self._file_sizes = torch.tensor(read_file_sizes(samples))
        self._files = [file for split in sorted(samples) for file, _ in samples[split]]
        self._initial_file_sizes = self._file_sizes  # at the start of the run
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
        """Returns the training split and the validation split after verifying images."""
        if not detect_launcher() and is_rank_zero():
            self._verify()
        return self._make_dataset("train"), self._make_dataset("validation")

    def setup(self, stage: str) -> None:
        """Reads the splits of the stage once.

        Ranks started by torchrun or srun verify images here, where a process group can share an error.
        """
        super().setup(stage)
        if stage == "fit" and detect_launcher() and self.trainer is not None:
            run_on_rank_zero(self._verify)

    def state_dict(self) -> dict[str, Any]:
        """Returns the file sizes at the start of the run."""
        return {"fingerprint": self.fingerprint, "file_sizes": self._initial_file_sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns if files of the same data set have changed since the run began."""
        if state_dict["fingerprint"] != self.fingerprint:
            return
        initial_sizes = state_dict["file_sizes"]
        num_changed = int((self._file_sizes != initial_sizes).sum())
        if num_changed and not torch.equal(initial_sizes, self._initial_file_sizes):  # warns only once
            rank_zero_warn(
                f"{num_changed:,} of {len(initial_sizes):,} images have changed in size since the run began. The "
                "resumed run is not exact."
            )
        self._initial_file_sizes = initial_sizes

    def sketch(self) -> list[int]:
        """Returns checksums of some images, to detect other images with the same names."""
        return compute_content_sketch(self._files)

    def load_test(self) -> ImageDataset:
        """Returns the test split."""
        return self._make_dataset("test")

    @property
    def preparation(self) -> dict[str, Any]:
        """Conversion of an image file to an input, in the format of :mod:`stormproof_train.predict.images`."""
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
        """Mean and standard deviation of each channel in [0, 1]. The standard deviation of a constant channel is 1."""
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

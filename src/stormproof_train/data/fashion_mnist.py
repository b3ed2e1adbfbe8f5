"""Fashion-MNIST, read with torchvision."""

from __future__ import annotations

import functools
import gzip
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock
from torchvision import datasets

from stormproof.checkpoint import atomic_write
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec
from stormproof_train.data.splits import split_two_ways
from stormproof_train.errors import UserError


class FashionMNIST(InMemoryDataModule):
    """70,000 images of clothing of shape (1, 28, 28), with 256 gray levels and 10 classes.

    10,000 images are the test split of the authors. The files are read from ``root``, where torchvision stores them. If
    they are missing, the original files in ``packaged`` are unpacked into ``root``. Otherwise they are downloaded if
    ``download`` is True. Pixels are scaled to mean 0 and standard deviation 1 over the training split.

    Args:
        root: Folder that contains, or will contain, ``FashionMNIST/raw``.
        packaged: Folder of the four ``.gz`` files. Debian's package dataset-fashion-mnist installs them there.
        download: If True, downloads missing files.
        batch_size: Samples per optimizer step, over all ranks and accumulated batches. Must be at least 1.
        validation_fraction: Fraction of the 60,000 training images, in (0, 1).
        num_workers: Loader processes per rank. Must be at least 0.
        drop_last: If True, drops the last batch of an epoch if it is smaller.
        seed: Seed of the split and of the order of the training samples.

    Raises:
        ValueError: If a number is out of range.
        UserError: In ``prepare_data``, if the files are missing and ``download`` is False.

    Example:
        >>> data = FashionMNIST(root="data", batch_size=256)
        >>> data.spec.input_shape, data.spec.num_classes
        ((1, 28, 28), 10)

    References:
        Xiao, Rasul & Vollgraf, Fashion-MNIST, 2017.
    """

    spec = DataSpec((1, 28, 28), num_classes=10, num_outputs=10)

    def __init__(
        self,
        root: str = "data",
        packaged: str = "/usr/share/datasets/fashion-mnist",
        download: bool = False,
        batch_size: int = 128,
        validation_fraction: float = 0.1,
        num_workers: int = 0,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)
        if not 0 < validation_fraction < 1:
            raise ValueError(f"`validation_fraction` must be between 0 and 1, got {validation_fraction}.")
        self.root = Path(root)
        self.packaged = Path(packaged)
        self.download = download
        self.validation_fraction = validation_fraction

    def prepare_data(self) -> None:
        """Creates missing files in ``root``. A lock serializes several processes."""
        if self._has_files():
            return
        if (self.packaged / "train-images-idx3-ubyte.gz").exists():
            _unpack(self.packaged, self.root / "FashionMNIST" / "raw")
        elif self.download:
            _download(self.root / "FashionMNIST" / "raw")
        else:
            raise UserError(
                f"data=fashion_mnist: the files are neither in data.root={self.root} (as FashionMNIST/raw/) nor in "
                f"data.packaged={self.packaged}. Install Debian's package dataset-fashion-mnist, or set "
                "data.download=true."
            )

    def load(self) -> tuple[Split, Split]:
        """Returns the training split and the validation split of the authors' 60,000 training images."""
        images, labels = self._images_and_labels
        train_indices, validation_indices = self._split_indices
        return self._normalize(images[train_indices], labels[train_indices]), self._normalize(
            images[validation_indices], labels[validation_indices]
        )

    def load_test(self) -> Split:
        """Returns the authors' test split."""
        test = datasets.FashionMNIST(str(self.root), train=False)
        return self._normalize(test.data, test.targets)

    @property
    def preparation(self) -> dict[str, Any]:
        """Conversion of a light-on-dark image to an input, in the format of :mod:`stormproof_train.predict.images`."""
        mean, std = self._mean_std
        return {"kind": "image", "channels": 1, "size": [28, 28], "white": 255.0, "mean": [mean], "std": [std]}

    def _has_files(self) -> bool:
        raw = self.root / "FashionMNIST" / "raw"
        return all((raw / Path(name).stem).exists() for name, _ in datasets.FashionMNIST.resources)

    @functools.cached_property
    def _images_and_labels(self) -> Split:
        train = datasets.FashionMNIST(str(self.root), train=True)
        return train.data, train.targets

    @functools.cached_property
    def _split_indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        _, labels = self._images_and_labels
        train_indices, validation_indices = split_two_ways(
            len(labels), self.validation_fraction, self.seed, labels.numpy()
        )
        return torch.from_numpy(train_indices), torch.from_numpy(validation_indices)

    @functools.cached_property
    def _mean_std(self) -> tuple[float, float]:
        images, _ = self._images_and_labels
        train = images[self._split_indices[0]].float()
        return float(train.mean()), float(train.std())

    def _normalize(self, images: torch.Tensor, labels: torch.Tensor) -> Split:
        mean, std = self._mean_std
        return ((images.float() - mean) / std).unsqueeze(1), labels


def _download(raw: Path) -> None:
    """Downloads the files to a temporary folder and moves them, so that partial files are never visible."""
    raw.mkdir(parents=True, exist_ok=True)
    with FileLock(raw / ".lock"), TemporaryDirectory(dir=raw) as folder:
        missing = [Path(url).stem for url, _ in datasets.FashionMNIST.resources if not (raw / Path(url).stem).exists()]
        if missing:  # otherwise another process has downloaded them
            datasets.FashionMNIST(folder, download=True)
        for name in missing:
            (Path(folder) / "FashionMNIST" / "raw" / name).replace(raw / name)


def _unpack(source: Path, raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    for url, _ in datasets.FashionMNIST.resources:
        name = Path(url).name
        with gzip.open(source / name) as archive, atomic_write(raw / Path(name).stem) as file:
            shutil.copyfileobj(archive, file)

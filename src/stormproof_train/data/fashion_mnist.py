"""Fashion-MNIST, by torchvision's reader."""

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
from stormproof_train.data.splits import hold_out
from stormproof_train.errors import UserError


class FashionMNIST(InMemoryDataModule):
    """70,000 images of clothing, (1, 28, 28) with 256 grey levels, 10 classes; 10,000 of them the authors' test split.

    Looks in ``root`` for what torchvision stores there; then in ``packaged`` for the four files as their authors pack
    them, and unpacks them into ``root``; then downloads, if it may. Pixels are scaled to mean 0 and standard
    deviation 1 over the training split.

    Args:
        root: the folder that holds, or will hold, ``FashionMNIST/raw``.
        packaged: the folder of the four ``.gz`` files; Debian's package dataset-fashion-mnist puts them there.
        download: whether the files may be fetched from the network.
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        validation_fraction: share of the 60,000 training images, in (0, 1).
        num_workers: loader processes of each rank, at least 0.
        drop_last: leaves an epoch's last, smaller training batch out.
        seed: fixes the split and the order of the training samples.

    Raises:
        ValueError: if a number is out of its range.
        UserError: if the files are in none of the places.

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
            raise ValueError(f"validation_fraction is {validation_fraction}; it must be between 0 and 1")
        self.root = Path(root)
        self.packaged = Path(packaged)
        self.download = download
        self.validation_fraction = validation_fraction

    def prepare_data(self) -> None:
        """Puts the files into ``root`` if they are not there; several processes do it in turn."""
        if self._has_files():
            return
        if (self.packaged / "train-images-idx3-ubyte.gz").exists():
            _unpack(self.packaged, self.root / "FashionMNIST" / "raw")
        elif self.download:
            _download(self.root / "FashionMNIST" / "raw")
        else:
            raise UserError(
                f"data=fashion_mnist: the files are neither in data.root={self.root} (as FashionMNIST/raw/) nor in "
                f"data.packaged={self.packaged} (Debian: apt-get install dataset-fashion-mnist), and "
                "data.download=true, which fetches them, is not set"
            )

    def load(self) -> tuple[Split, Split]:
        """The training and the validation split, of the authors' 60,000 training images."""
        images, labels = self._images_and_labels
        train_indices, validation_indices = self._split_indices
        return self._normalize(images[train_indices], labels[train_indices]), self._normalize(
            images[validation_indices], labels[validation_indices]
        )

    def load_test(self) -> Split:
        """The authors' test split."""
        test = datasets.FashionMNIST(str(self.root), train=False)
        return self._normalize(test.data, test.targets)

    @property
    def preparation(self) -> dict[str, Any]:
        """How an image file, light on dark, becomes an input, as :mod:`stormproof_train.predict.images` reads it."""
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
        train_indices, validation_indices = hold_out(len(labels), self.validation_fraction, self.seed, labels.numpy())
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
    """Fetches the files beside their place and moves them there: nobody ever finds half of one."""
    raw.mkdir(parents=True, exist_ok=True)
    with FileLock(raw / ".lock"), TemporaryDirectory(dir=raw) as folder:
        missing = [Path(url).stem for url, _ in datasets.FashionMNIST.resources if not (raw / Path(url).stem).exists()]
        if missing:  # else another process has fetched them meanwhile
            datasets.FashionMNIST(folder, download=True)
        for name in missing:
            (Path(folder) / "FashionMNIST" / "raw" / name).replace(raw / name)


def _unpack(source: Path, raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    for url, _ in datasets.FashionMNIST.resources:
        name = Path(url).name
        with gzip.open(source / name) as archive, atomic_write(raw / Path(name).stem) as file:
            shutil.copyfileobj(archive, file)

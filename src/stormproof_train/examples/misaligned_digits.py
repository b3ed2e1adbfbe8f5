"""Digits with the labels of other scans, as from two lists in different order."""

from __future__ import annotations

from typing import Literal

from stormproof_train.data.digits import Digits


class MisalignedDigits(Digits):
    """Digits data set whose scans and labels are joined by position, but sorted by file name and by number.

    As text, ``10.png`` precedes ``2.png``, so nearly every scan in every split has the label of another one.

    Args:
        sorted_as: Order of the file names. With ``number``, each scan has its own label.
        batch_size: Samples per optimizer step, over all ranks and accumulated batches. Must be at least 1.
        seed: Seed of the split and of the order of the training samples.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """

    def __init__(self, sorted_as: Literal["text", "number"] = "text", batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)
        if sorted_as == "text":
            self._images = self._images[sorted(range(len(self._images)), key=str)]

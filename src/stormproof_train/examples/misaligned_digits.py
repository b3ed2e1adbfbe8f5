"""Digits whose labels are those of other scans, as two lists that were sorted in two ways make them."""

from __future__ import annotations

from typing import Literal

from stormproof_train.data.digits import Digits


class MisalignedDigits(Digits):
    """The digits, joined from two lists by place: of scans by the name of their file, and of labels by number.

    As text, ``10.png`` comes before ``2.png``: nearly every scan, in every split, has the label of another one.

    Args:
        sorted_as: how the names of the files are sorted; as a ``number``, each scan has its own label.
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        seed: fixes the split and the order of the training samples.

    Raises:
        ValueError: if ``batch_size`` is below 1.
    """

    def __init__(self, sorted_as: Literal["text", "number"] = "text", batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)
        if sorted_as == "text":
            self._images = self._images[sorted(range(len(self._images)), key=str)]

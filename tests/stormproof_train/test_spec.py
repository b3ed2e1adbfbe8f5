from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from stormproof_train.data.spec import DataSpec, spec_of
from stormproof_train.errors import UserError


class _Foreign(pl.LightningDataModule):
    def __init__(self, *tensors: torch.Tensor, **attributes: Any) -> None:
        super().__init__()
        self.tensors = tensors
        self.stages: list[str] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def prepare_data(self) -> None:
        self.stages.append("prepare")

    def setup(self, stage: str) -> None:
        self.stages.append(stage)

    def train_dataloader(self) -> DataLoader:
        dataset: Any = TensorDataset(*self.tensors)
        if hasattr(self, "classes"):
            dataset.classes = self.classes
        return DataLoader(dataset, batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        raise AssertionError("one batch of the training split tells all")

    test_dataloader = val_dataloader


IMAGES = torch.zeros(9, 3, 5, 6)
LABELS = torch.arange(9) % 3

FOREIGN = {
    "a number of classes": (_Foreign(IMAGES, LABELS, num_classes=3), DataSpec((3, 5, 6), 3, 3)),
    "counts of the classes": (
        _Foreign(IMAGES, LABELS, num_classes=3, class_counts=torch.tensor([3, 3, 3])),
        DataSpec((3, 5, 6), 3, 3, class_counts=(3, 3, 3)),
    ),
    "the names of the classes": (_Foreign(IMAGES, LABELS, classes=["a", "b", "c", "d"]), DataSpec((3, 5, 6), 4, 4)),
    "numbers": (_Foreign(torch.zeros(9, 7), torch.zeros(9, 2)), DataSpec((7,), None, 2)),
    "numbers without a column": (_Foreign(torch.zeros(9, 7), torch.zeros(9)), DataSpec((7,), None, 1)),
}


@pytest.mark.parametrize(("data", "spec"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_module_is_known_by_its_first_batch(data: _Foreign, spec: DataSpec):
    before = torch.get_rng_state()
    data.stages.clear()
    assert spec_of(data) == spec
    assert data.stages == ["prepare", "fit"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            _Foreign(IMAGES, LABELS, num_classes=3, class_counts=[3, 6]),
            r"data: _Foreign\.class_counts has 2 counts for 3 classes: one for each",
        ),
        (_Foreign(IMAGES, LABELS), "data: _Foreign gives class labels but not how many classes"),
        (_Foreign(IMAGES), r"must yield pairs of tensors \(input, target\), and gives list"),
        (_Foreign(IMAGES, LABELS, LABELS), r"must yield pairs of tensors \(input, target\), and gives list"),
    ],
    ids=["counts of other classes", "no classes", "no target", "three parts"],
)
def test_a_foreign_module_that_says_too_little_is_a_sentence(data: _Foreign, sentence: str):
    with pytest.raises(UserError, match=sentence):
        spec_of(data)


def test_a_module_with_a_spec_is_not_asked_for_a_batch():
    spec = DataSpec((1,), 2, 2)
    data = _Foreign(IMAGES, LABELS, spec=spec)
    assert spec_of(data) is spec
    assert data.stages == []

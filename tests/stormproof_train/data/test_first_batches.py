"""What is wrong with data of one's own is one sentence before anything is trained."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from stormproof_train.data.first_batches import check_first_batches
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec, infer_spec
from stormproof_train.errors import UserError
from tests.support.foreign_data import Foreign

X = torch.randn(9, 5)
LABELS = torch.arange(9) % 3
NUMBERS = torch.randn(9, 2)
NAN = torch.full((9, 5), torch.nan)
HOT = torch.nn.functional.one_hot(LABELS, 3)

GOOD = {
    "labels": Foreign(X, LABELS, num_classes=3),
    "small integers": Foreign(X, LABELS.to(torch.uint8), num_classes=3),
    "probabilities": Foreign(X, torch.softmax(torch.randn(9, 3), dim=1), num_classes=3),
    "numbers": Foreign(X, NUMBERS),
    "numbers without a column": Foreign(X, NUMBERS[:, 0]),
    "a spec of its own": Foreign(X, NUMBERS, spec=DataSpec((5,), None, 2)),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_data_that_can_be_learnt_from_pass(data: Foreign):
    assert check_first_batches(data, infer_spec(data)) is torch.float32


BAD = {
    "labels from 1": (
        Foreign(X, LABELS * 0 + 3, num_classes=3),
        "training batch of Foreign the class labels of 3 classes must be from",
    ),
    "a label below 0": (
        Foreign(X, LABELS * 0 - 1, num_classes=3),
        "of 3 classes must be from 0 to 2, got -1 to -1",
    ),
    "one-hot integers": (
        Foreign(X, HOT, num_classes=3),
        "have shape (4, 3), expected (batch,). Use target.argmax(dim=1)",
    ),
    "labels in a column": (
        Foreign(X, LABELS[:, None], num_classes=3),
        "have shape (4, 1), expected (batch,). Use target.",
    ),
    "labels that are floats": (
        Foreign(X, LABELS.float(), num_classes=3),
        "the targets have shape (4,) and type torch.float32. 3 classes need integer labels (batch,) (target.long())",
    ),
    "numbers beside the names of classes": (
        Foreign(X, NUMBERS, classes=["a", "b", "c"]),
        "For regression, do not set num_",
    ),
    "logits": (Foreign(X, 9 * HOT.float() - 3, num_classes=3), "the targets must be probabilities fr"),
    "inputs that are missing": (
        Foreign(NAN, LABELS, num_classes=3),
        "20 of the 20 numbers of the inputs are not finite (nan)",
    ),
    "targets that are missing": (Foreign(X, NAN), "20 of the 20 numbers of the targets are not finite (nan). Replace"),
    "targets of any size": (Foreign(X, NUMBERS.clamp(min=1) * 1e38), "e+38, at most 1e+15 is allowed. Divide th"),
    "no training": (
        Foreign(X[:0], LABELS[:0], num_classes=3),
        "data: the training loader of Foreign has no batches. T",
    ),
    "no validation": (
        Foreign(X, LABELS, num_classes=3, validation=(X[:0], LABELS[:0])),
        "data: the validation loader of Foreign has no batch",
    ),
    "a validation of another width": (
        Foreign(X, LABELS, num_classes=3, validation=(X[:, :4], LABELS)),
        "data: in the first validation batch of Foreign a sample's inputs have shape (4,), expected (5,)",
    ),
    "a validation of other targets": (
        Foreign(X, NUMBERS, validation=(X, NUMBERS[:, :1])),
        "data: in the first validation batch of Foreign a sample's target has 1 numbers, expected 2",
    ),
    "a validation without targets": (Foreign(X, LABELS, num_classes=3, validation=(X,)), "must yield pairs of tensors"),
}


@pytest.mark.parametrize(("data", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_no_network_learns_from_is_one_sentence(data: Foreign, sentence: str):
    with pytest.raises(UserError) as excinfo:
        check_first_batches(data, infer_spec(data))
    assert sentence in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


def test_samples_one_by_one_are_no_batches():
    class Single(Foreign):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(TensorDataset(*self.tensors), batch_size=None)

    data = Single(X, LABELS, num_classes=3)
    with pytest.raises(UserError, match=r"the inputs have shape \(5,\) and the targets \(\)\. Both must have the same"):
        check_first_batches(data, infer_spec(data))


def test_a_list_of_one_loader_is_taken_as_lightning_does():
    class Listed(Foreign):
        def val_dataloader(self) -> Any:
            return [super().val_dataloader()]

    data = Listed(X, LABELS, num_classes=3)
    assert check_first_batches(data, infer_spec(data)) is torch.float32


def test_looking_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    check_first_batches(GOOD["labels"], infer_spec(GOOD["labels"]))
    assert torch.equal(torch.get_rng_state(), before)


class _Mine(InMemoryDataModule):
    def __init__(self, train: Split, validation: Split, spec: DataSpec) -> None:
        super().__init__(batch_size=4, num_workers=0, drop_last=False, seed=0)
        self.splits, self.spec = (train, validation), spec

    def load(self) -> tuple[Split, Split]:
        return self.splits


def test_of_data_in_memory_every_sample_is_looked_at():
    spec = DataSpec((5,), num_classes=3, num_outputs=3)
    wrong = LABELS.clone()
    wrong[-1] = 3
    with pytest.raises(
        UserError,
        match=r"^data: in the training split of _Mine the class labels of 3 classes must be from 0 to 2, got 0 to 3",
    ):
        _Mine((X, wrong), (X, LABELS), spec).load_spec()
    with pytest.raises(UserError, match=r"^data: in the validation split of _Mine 45 of the 45 numbers of the inputs"):
        _Mine((X, LABELS), (NAN, LABELS), spec).load_spec()
    assert _Mine((X, LABELS), (X, LABELS), spec).load_spec().class_counts == (3, 3, 3)
    assert _Mine((X, HOT.float()), (X, HOT.float()), spec).load_spec() == spec

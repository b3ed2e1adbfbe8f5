import pytest
import torch

from stormproof_train.data.spec import DataSpec, infer_spec
from stormproof_train.errors import UserError
from tests.support.foreign_data import Foreign

IMAGES = torch.zeros(9, 3, 5, 6)
LABELS = torch.arange(9) % 3

FOREIGN = {
    "a number of classes": (Foreign(IMAGES, LABELS, num_classes=3), DataSpec((3, 5, 6), 3, 3)),
    "counts of the classes": (
        Foreign(IMAGES, LABELS, num_classes=3, class_counts=torch.tensor([3, 3, 3])),
        DataSpec((3, 5, 6), 3, 3, class_counts=(3, 3, 3)),
    ),
    "the names of the classes": (Foreign(IMAGES, LABELS, classes=["a", "b", "c", "d"]), DataSpec((3, 5, 6), 4, 4)),
    "probabilities": (Foreign(torch.zeros(9, 7), torch.full((9, 2), 0.5), num_classes=2), DataSpec((7,), 2, 2)),
    "numbers": (Foreign(torch.zeros(9, 7), torch.zeros(9, 2)), DataSpec((7,), None, 2)),
    "numbers without a column": (Foreign(torch.zeros(9, 7), torch.zeros(9)), DataSpec((7,), None, 1)),
}


@pytest.mark.parametrize(("data", "spec"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_module_is_known_by_its_first_batch(data: Foreign, spec: DataSpec):
    before = torch.get_rng_state()
    data.stages.clear()
    assert infer_spec(data) == spec
    assert data.stages == ["prepare", "fit"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            Foreign(IMAGES, LABELS, num_classes=3, class_counts=[3, 6]),
            r"data: Foreign\.class_counts must have one count per class, got 2 for 3 classes",
        ),
        (Foreign(IMAGES, LABELS), "data: Foreign yields class labels, but the number of classes is unknown"),
        (Foreign(IMAGES), r"must yield pairs of tensors \(input, target\), got list"),
        (Foreign(IMAGES, LABELS, LABELS), r"must yield pairs of tensors \(input, target\), got list"),
    ],
    ids=["counts of other classes", "no classes", "no target", "three parts"],
)
def test_a_foreign_module_that_says_too_little_is_a_sentence(data: Foreign, sentence: str):
    with pytest.raises(UserError, match=sentence):
        infer_spec(data)


def test_a_module_with_a_spec_is_not_asked_for_a_batch():
    spec = DataSpec((1,), 2, 2)
    data = Foreign(IMAGES, LABELS, spec=spec)
    assert infer_spec(data) is spec
    assert data.stages == []

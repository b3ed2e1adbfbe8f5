from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.fashion_mnist import FashionMNIST
from stormproof_train.data.in_memory import BatchedTensorDataset, InMemoryDataModule, Split
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from tests.support.split_arrays import concatenate_batches


def _order(data: InMemoryDataModule, epochs: int = 3) -> list[list[float]]:
    """The samples of each epoch in their order, each by its checksum."""
    data.setup("fit")
    loader = data.train_dataloader()
    return [[float(row.sum()) for inputs, _ in loader for row in inputs] for _ in range(epochs)]


class _Small(InMemoryDataModule):
    """Sample i is the number i."""

    spec = DataSpec((1,), None, 1)
    tests_read = 0

    def __init__(self, batch_size: int = 5, num_workers: int = 0, drop_last: bool = False, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)

    def load(self) -> tuple[Split, Split]:
        return self._numbers(23), self._numbers(7)

    def load_test(self) -> Split:
        self.tests_read += 1
        return self._numbers(4)

    @staticmethod
    def _numbers(count: int) -> Split:
        return torch.arange(float(count)).unsqueeze(1), torch.arange(float(count)).unsqueeze(1)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning", "ignore:.*suggested max number of worker.*")
def test_the_number_of_workers_does_not_change_the_order_of_any_epoch():
    assert _order(_Small(num_workers=0, seed=3)) == _order(_Small(num_workers=2, seed=3))


def test_the_seed_alone_fixes_the_order():
    torch.manual_seed(1)
    order = _order(_Small(seed=3))
    torch.manual_seed(2)
    assert _order(_Small(seed=3)) == order
    assert _order(_Small(seed=4)) != order


def test_loading_draws_nothing_from_the_global_generator():
    data = _Small()
    before = torch.get_rng_state()
    _order(data)
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_has_each_sample_once_in_another_order():
    epochs = _order(_Small())
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])


def test_validation_and_test_keep_their_order():
    data = _Small()
    data.setup("validate")
    data.setup("test")
    assert concatenate_batches(data.val_dataloader())[0].flatten().tolist() == list(range(7))
    assert concatenate_batches(data.test_dataloader())[0].flatten().tolist() == list(range(4))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_the_last_smaller_batch_is_kept_unless_it_is_to_be_dropped(drop_last: bool, sizes: list[int]):
    data = _Small(drop_last=drop_last)
    data.setup("fit")
    assert [len(inputs) for inputs, _ in data.train_dataloader()] == sizes
    assert [len(inputs) for inputs, _ in data.val_dataloader()] == [5, 2]  # nothing is dropped here


def test_the_test_split_is_read_once_and_only_to_test():
    data = _Small()
    for stage in ("fit", "validate", "fit"):
        data.setup(stage)
    assert data.tests_read == 0
    data.setup("test")
    data.setup("test")
    assert data.tests_read == 1


@pytest.mark.parametrize(
    ("batch", "ranks", "accumulated", "micro"),
    [(12, 1, 1, 12), (12, 2, 1, 6), (12, 1, 3, 4), (12, 2, 3, 2), (6, 2, 3, 1), (13, 2, 3, None), (5, 2, 3, None)],
)
def test_the_batch_is_that_of_the_whole_job(batch: int, ranks: int, accumulated: int, micro: int | None):
    data: Any = _Small(batch_size=batch)
    data.trainer = SimpleNamespace(world_size=ranks, accumulate_grad_batches=accumulated)
    data.setup("fit")
    data.setup("test")
    for make in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        if micro is not None:
            assert make().batch_size == micro
            continue
        with pytest.raises(UserError) as excinfo:
            make()
        assert str(excinfo.value) == (
            f"data.batch_size={batch} must be divisible by {ranks} ranks x {accumulated} accumulated batches "
            "(trainer.accumulate_grad_batches), because it is the batch of all ranks together."
        )


def test_a_batch_of_more_than_all_is_refused():
    data = _Small(batch_size=24)
    data.setup("fit")
    with pytest.raises(
        UserError, match=r"^data.batch_size=24 exceeds the 23 training samples. Set data.batch_size=23 or "
    ):
        data.train_dataloader()


def test_accumulated_batches_may_have_more_samples_together_than_there_are():
    data = _Small(batch_size=46)
    data.setup("fit")
    data.check_batch_size(batches_per_step=2)
    with pytest.raises(UserError, match=r"Set data.batch_size=23 or less.$"):
        data.check_batch_size(batches_per_step=1)


def test_a_batch_of_all_is_one_batch():
    data = _Small(batch_size=23)
    data.setup("fit")
    assert len(data.train_dataloader()) == 1


@pytest.mark.parametrize("data", [Digits, Diabetes, FashionMNIST, MNIST1D])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ],
)
def test_an_impossible_number_is_refused_by_name(
    data: type[InMemoryDataModule], arguments: dict[str, Any], sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        data(**arguments)


def test_a_batch_is_the_samples_one_by_one():
    data = BatchedTensorDataset(torch.arange(6.0).reshape(3, 2), torch.arange(3))
    assert len(data) == 3
    inputs, targets = data.__getitems__([2, 0])
    assert inputs.tolist() == [data[2][0].tolist(), data[0][0].tolist()]
    assert targets.tolist() == [2, 0]


def test_fewer_samples_than_ranks_are_a_sentence():
    data = _Small(batch_size=5)
    data.setup("fit")
    data.setup("test")
    data.trainer = SimpleNamespace(world_size=5, accumulate_grad_batches=1)  # type: ignore[assignment]
    assert data.val_dataloader()
    with pytest.raises(UserError, match=r"5 ranks cannot share 4 test samples\. Use fewer ranks or more data"):
        data.test_dataloader()

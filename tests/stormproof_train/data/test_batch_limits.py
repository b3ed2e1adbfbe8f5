from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from stormproof.data import batch_order
from stormproof.data.shard import Replica
from stormproof_train.data.batch_limits import check_batch_limits
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from tests.support.foreign_data import Foreign
from tests.support.task_fits import IGNORE_LIGHTNING_WARNINGS, make_task, make_trainer


class Ours(InMemoryDataModule):
    """40 training, 20 validation and 12 test samples, in batches of four."""

    spec = DataSpec((2,), None, 1)

    def __init__(self, batch_size: int = 4, drop_last: bool = False) -> None:
        super().__init__(batch_size, 0, drop_last, 0)

    def load(self) -> tuple[Split, Split]:
        return _split(40), _split(20)

    def load_test(self) -> Split:
        return _split(12)


class Endless(Foreign):
    """Of which nobody knows how many batches there are."""

    def train_dataloader(self) -> DataLoader:
        class Samples(IterableDataset):
            def __iter__(self) -> Any:
                yield from zip(*_split(40), strict=True)

        return DataLoader(Samples(), batch_size=4)


def _split(samples: int) -> Split:
    return torch.zeros(samples, 2), torch.zeros(samples, 1)


def _foreign() -> Foreign:
    return Foreign(*_split(40), validation=_split(20))


def _trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


def _check(data: pl.LightningDataModule, tests: bool = True, **options: Any) -> None:
    data.prepare_data()
    data.setup("fit")
    check_batch_limits(_trainer(**options), data, tests)
    assert data.trainer is None


INTERVAL = "trainer.val_check_interval=11 exceeds the 10 training batches of an epoch. Set trainer.val_check_inte"
REFUSED = {
    "no interval": ({"val_check_interval": 0}, "trainer.val_check_interval must not be 0. Set a number of batches"),
    "an interval of more than an epoch": ({"val_check_interval": 11}, INTERVAL),
    "an interval of more than its limit": (
        {"val_check_interval": 4, "limit_train_batches": 3}, "=4 exceeds the 3 training batches"
    ),
    "an interval of more than its share": (
        {"val_check_interval": 6, "limit_train_batches": 0.5}, "=6 exceeds the 5 training batches"
    ),
    "no training batch": ({"limit_train_batches": 0.09}, "trainer.limit_train_batches=0.09 of 10 training batches is"),
    "no validation batch": ({"limit_val_batches": 0.1}, "trainer.limit_val_batches=0.1 of 5 validation batches is"),
    "no batch to overfit": ({"overfit_batches": 0.05}, "trainer.overfit_batches=0.05 of 10 training batches is less"),
}  # fmt: skip
ALLOWED: list[dict[str, Any]] = [
    {},
    {"val_check_interval": 10},
    {"val_check_interval": 11, "check_val_every_n_epoch": None},
    {"val_check_interval": 0.01},
    {"val_check_interval": "00:01:00:00"},
    {"limit_train_batches": 0.1, "limit_val_batches": 0.2},
    {"limit_train_batches": 1000, "limit_val_batches": 1000},
    {"overfit_batches": 2},
    {"fast_dev_run": True, "val_check_interval": 11},
]


@pytest.mark.parametrize("data", [Ours, _foreign])
@pytest.mark.parametrize(("options", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_a_limit_that_no_loader_fits_is_refused(options: dict[str, Any], sentence: str, data: Any):
    with pytest.raises(UserError) as excinfo:
        _check(data(), **options)
    assert sentence in str(excinfo.value)


@IGNORE_LIGHTNING_WARNINGS
@pytest.mark.filterwarnings("ignore:.*overfit.*", "ignore:.*fast_dev_run.*")
@pytest.mark.parametrize("options", [*ALLOWED, *(options for options, _ in REFUSED.values())], ids=str)
def test_what_is_refused_is_what_lightning_refuses(options: dict[str, Any], tmp_path: Any):
    trainer, _ = make_trainer(tmp_path, **options)
    data = Ours()
    if options in ALLOWED:
        _check(Ours(), **options)
        trainer.fit(make_task(data.load_spec()), datamodule=data)
    else:
        with pytest.raises(Exception, match=r"val_check_interval|Please increase the `limit|modulo by zero"):
            trainer.fit(make_task(data.load_spec()), datamodule=data)


def test_the_test_split_is_looked_at_only_where_a_fraction_of_it_is_wanted():
    with pytest.raises(UserError, match=r"^trainer.limit_test_batches=0.3 of 3 test batches is less than one batch"):
        _check(Ours(), limit_test_batches=0.3)
    _check(Ours(), tests=False, limit_test_batches=0.3)
    whole = Ours()
    _check(whole, limit_test_batches=2)
    assert whole._test is None


@pytest.mark.parametrize(
    ("ranks", "batch_size", "drop_last", "batches"),
    [(2, 4, False, 10), (3, 6, False, 7), (3, 6, True, 6), (3, 3, False, 13), (3, 12, False, 4)],
)
def test_the_batches_of_a_rank_count(
    ranks: int, batch_size: int, drop_last: bool, batches: int, monkeypatch: pytest.MonkeyPatch
):
    data, trainer = Ours(batch_size, drop_last), _trainer(devices=ranks, strategy="ddp")
    data.setup("fit")
    trainer.val_check_interval = batches
    check_batch_limits(trainer, data, runs_test=True)
    trainer.val_check_interval = batches + 1
    with pytest.raises(UserError, match=rf"={batches + 1} exceeds the {batches} training batches"):
        check_batch_limits(trainer, data, runs_test=True)
    monkeypatch.setattr(batch_order, "current_replica", lambda: Replica(0, ranks))  # as if there were a process group
    data.trainer = trainer
    assert len(data.train_dataloader()) == batches


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"data.batch_size=4 must be divisible by 1 rank x 3 accumulated batches"):
        _check(Ours(), accumulate_grad_batches=3)


@pytest.mark.parametrize("option", ["limit_train_batches", "val_check_interval"])
def test_a_fraction_of_an_unknown_number_of_batches_is_refused(option: str):
    with pytest.raises(UserError, match=rf"^trainer.{option}=0.5 is a fraction, but the training loader has no length"):
        _check(Endless(*_split(4), validation=_split(4)), **{option: 0.5})
    _check(Endless(*_split(4), validation=_split(4)), val_check_interval=1000)

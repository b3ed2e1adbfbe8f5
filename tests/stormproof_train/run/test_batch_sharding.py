from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof_train.errors import UserError
from stormproof_train.run.batch_sharding import adjust_accumulation, compute_accumulation


@pytest.mark.parametrize(
    ("given", "ranks", "first", "batch_size", "expected"),
    [
        (1, 2, None, 64, 1),
        (1, 1, (2, 1), 64, 2),
        (2, 2, (4, 2), 64, 4),
        (4, 2, (2, 1), 64, 4),  # the same ranks: as the config has it
        (1, 2, (1, 1), 64, 1),  # a forward pass has fewer samples
        (1, 3, (8, 1), 48, 4),  # no more than six samples at once
        (1, 3, (4, 1), 64, 1),  # the data says that these cannot share the batch
        (1, 1, (2, 1), None, 2),
        (1, 3, (2, 1), None, 1),
    ],
)
def test_fewer_ranks_take_more_batches_for_a_step(
    given: int, ranks: int, first: tuple[int, int] | None, batch_size: int | None, expected: int
):
    assert compute_accumulation(given, ranks, first, batch_size) == expected


def quiet(**options: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


def test_what_is_counted_in_batches_goes_along():
    alone = quiet(limit_train_batches=10, val_check_interval=5, limit_val_batches=3)
    adjust_accumulation(alone, (2, 1), 64)
    counted = (alone.accumulate_grad_batches, alone.limit_train_batches, alone.val_check_interval)
    assert (*counted, alone.limit_val_batches) == (2, 20, 10, 3)


def test_shares_of_an_epoch_stay():
    alone = quiet(limit_train_batches=0.5)
    adjust_accumulation(alone, (2, 1), 64)
    assert (alone.limit_train_batches, alone.val_check_interval) == (0.5, 1.0)


def test_a_limit_that_is_no_whole_number_of_batches_any_more_is_a_sentence():
    with pytest.raises(UserError, match=r"val_check_interval=5 .* for 1 rank with 3 batches"):
        adjust_accumulation(quiet(accumulate_grad_batches=2, val_check_interval=5), (3, 1), 12)


def test_a_schedule_of_accumulation_decides_by_itself():
    scheduled = quiet(callbacks=[pl.callbacks.GradientAccumulationScheduler({0: 4})])
    adjust_accumulation(scheduled, (1, 4), 64)
    assert scheduled.accumulate_grad_batches == 1

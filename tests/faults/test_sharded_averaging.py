"""Averages of sharded weights equal averages of full weights, also after a resume with any strategy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Store, load_checkpoint
from stormproof.checkpoint.sharding.shard_reader import ShardReader
from stormproof.distributed.dtensor import to_local
from stormproof.lightning.sharded_averaging import ShardedAverage
from stormproof.testing import FaultInjector
from tests.support.exact_resume_training import SYNC_SAVE, Cell, train
from tests.support.forked_attempts import Outcome, assert_bitwise_equal, run_attempt, train_uninterrupted

pytestmark = pytest.mark.slow

IN_SHARDS = Cell(sharded=True, saves_shards=True, ranks=2, ema=True)
IN_ONE_FILE = replace(IN_SHARDS, saves_shards=False)
LAYOUTS = pytest.mark.parametrize("cell", [IN_SHARDS, IN_ONE_FILE], ids=["in shards", "in one file"])
DECAY = 0.9  # of the cells


def gather_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the full parameters by name. All ranks call it together."""
    parameters = {name.removeprefix("module."): parameter.detach() for name, parameter in module.named_parameters()}
    return {
        name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.clone()
        for name, parameter in parameters.items()
    }


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    different = [name for name, tensor in actual.items() if not torch.equal(tensor, expected[name])]
    assert not different, different
    assert actual


def find_average(trainer: Any) -> Any:
    return next(callback for callback in trainer.callbacks if isinstance(callback, EMAWeightAveraging))._average_model


class ReferenceAverage(pl.Callback):
    """Averages the gathered weights and compares them with the weights that are validated and returned."""

    def __init__(self) -> None:
        self.expected: dict[str, torch.Tensor] = {}
        self.validations = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = gather_weights(pl_module)
        average = self.expected
        self.expected = {
            name: DECAY * average[name] + (1 - DECAY) * value if average else value for name, value in weights.items()
        }

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.validations == 0:  # the sanity check has swapped the initial weights back
            assert_equal(gather_weights(pl_module), gather_weights(find_average(trainer)))
            self.validations = 1

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.expected and batch_idx == 0:
            assert_equal(gather_weights(pl_module), self.expected)
            self.validations += 1

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.validations == 1 + trainer.max_epochs
        assert_equal(gather_weights(pl_module), self.expected)
        average = find_average(trainer)
        assert isinstance(average, ShardedAverage)
        shards = [to_local(parameter) for parameter in average.parameters()]
        assert sum(shard.numel() for shard in shards) < sum(weight.numel() for weight in self.expected.values())
        with CommDebugMode() as communication:
            average.update_parameters(pl_module)
        assert communication.get_total_counts() == 0


@LAYOUTS
def test_each_rank_averages_validates_and_returns_its_shards_of_the_average(cell: Cell, tmp_path: Path):
    outcome = run_attempt(cell, tmp_path, ReferenceAverage)
    assert outcome.results is not None, outcome.output
    assert "doesn't support sharding" not in outcome.output


@LAYOUTS
def test_a_killed_run_with_sharded_averages_resumes_bit_for_bit(cell: Cell, tmp_path: Path):
    points = [("on_train_batch_end", 2), ("on_validation_batch_start", 8), ("on_train_batch_start", 20)]
    for number, (point, step) in enumerate(points):
        outcome = run_attempt(cell, tmp_path, partial(FaultInjector().stop, point, step, number % 2))
        assert outcome.was_killed, outcome.output
    assert_bitwise_equal(run_attempt(cell, tmp_path), train_uninterrupted(cell))


def test_another_layout_is_resumed_bit_for_bit(tmp_path: Path):
    for cell, step in ((IN_SHARDS, 5), (IN_ONE_FILE, 12)):
        assert stop_at(step, cell, tmp_path).was_killed
    assert_bitwise_equal(run_attempt(IN_SHARDS, tmp_path), train_uninterrupted(IN_SHARDS))


def stop_at(step: int, cell: Cell, folder: Path, **options: Any) -> Outcome:
    return run_attempt(
        cell, folder, partial(FaultInjector().stop, "on_train_batch_start", step), recovery=SYNC_SAVE, **options
    )


class LoadedWeights(pl.Callback):
    """Compares the loaded weights and their average with the content of the checkpoint."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        recovery = next(callback for callback in trainer.callbacks if isinstance(callback, CheckpointRecovery))
        if recovery.resumed_from is None:
            return
        checkpoint, average = load_checkpoint(recovery.resumed_from.path), find_average(trainer)
        assert_equal(gather_weights(average), checkpoint["state_dict"])
        assert_equal(gather_weights(pl_module), checkpoint["current_model_state"])
        assert average.n_averaged == checkpoint["averaging_state"]["n_averaged"] == trainer.global_step
        print("the loaded weights are equal")  # noqa: T201 (read by the test)


def train_checking_weights(cell: Cell, folder: Path, extra: Any = None, **options: Any) -> Any:
    return train(cell, folder, [*(extra or []), LoadedWeights()], **options)


def test_the_average_is_equal_after_a_change_of_the_world_size_and_of_the_strategy(tmp_path: Path):
    two_ranks, one_rank = Cell(ranks=2, samples=56, ema=True), Cell(accumulate=2, samples=56, ema=True)
    sharded = {"sharded": True, "saves_shards": True}
    attempts = [
        (replace(two_ranks, **sharded), 3),
        (replace(one_rank, **sharded), 6),
        (two_ranks, 9),
        (replace(two_ranks, **sharded), 12),
        (one_rank, 15),
        (replace(two_ranks, sharded=True), 18),
        (one_rank, None),
    ]
    outcome = None
    for index, (cell, step) in enumerate(attempts):
        faults = None if step is None else partial(FaultInjector().stop, "on_train_batch_start", step)
        outcome = run_attempt(cell, tmp_path, faults, function=train_checking_weights, recovery=SYNC_SAVE)
        assert outcome.was_killed == (step is not None), outcome.output
        assert ("the loaded weights are equal" in outcome.output) == (index > 0), outcome.output
        assert ("Each sample still occurs once per epoch" in outcome.output) == (index not in {0, 3}), outcome.output
        assert ("The checkpoint was saved with" in outcome.output) == (index > 0), outcome.output
    assert outcome is not None
    assert outcome.results is not None, outcome.output


def test_each_rank_writes_its_shards_of_both_the_average_and_the_trained_weights(tmp_path: Path):
    assert stop_at(4, IN_SHARDS, tmp_path).was_killed
    folder = Store(tmp_path / "checkpoints").read_checkpoints()[-1].path
    metadata = ShardReader.from_folder(folder).read_metadata()
    for name in ("state_dict.net.0.weight", "current_model_state.net.0.weight"):
        files = {info.relative_path for key, info in metadata.storage_data.items() if key.fqn == name}
        assert files == {"__0_0.distcp", "__1_0.distcp"}
    unsharded_state = torch.load(folder / "meta.pt", weights_only=True)
    assert not {"state_dict", "current_model_state"} & unsharded_state.keys()


def train_from(cell: Cell, folder: Path, path: Path, **options: Any) -> Any:
    """Trains from a checkpoint that CheckpointRecovery did not save."""

    def arrange(callbacks: list[Any]) -> list[Any]:
        callbacks[-1].latest_checkpoint = lambda _: str(path)
        return callbacks

    return train(cell, folder, arrange=arrange, **options)


@LAYOUTS
def test_a_checkpoint_that_lightning_saved_starts_another_run(cell: Cell, tmp_path: Path):
    assert run_attempt(replace(cell, epochs=1), tmp_path / "first").results is not None
    (path,) = (tmp_path / "first" / "models").glob("*.ckpt")
    outcome = run_attempt(cell, tmp_path / "second", function=train_from, path=path)
    assert outcome.results is not None, outcome.output
    assert outcome.results[0]["step"] == cell.steps
    warning = "The checkpoint was not created with WeightAveraging"
    assert (warning in outcome.output) == cell.saves_shards, outcome.output


def test_the_wrong_order_of_callbacks_is_explained(tmp_path: Path):
    cell = replace(IN_SHARDS, ranks=1, ema=False)
    outcome = run_attempt(cell, tmp_path, EMAWeightAveraging)
    assert outcome.exit_codes == (1,)
    assert "FSDP does not support deepcopy" in outcome.output
    assert "Put CheckpointRecovery before EMAWeightAveraging in the list of callbacks" in outcome.output


def test_stochastic_weight_averaging_is_refused_with_an_error(tmp_path: Path):
    outcome = run_attempt(replace(IN_SHARDS, ranks=1), tmp_path, partial(StochasticWeightAveraging, 0.01))
    assert outcome.exit_codes == (2,), outcome.output
    assert "StochasticWeightAveraging does not support sharded parameters. Use EMAWeight" in outcome.output

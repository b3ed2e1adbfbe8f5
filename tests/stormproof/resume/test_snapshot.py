import io
import random
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from stormproof import resumable
from stormproof.errors import NotResumableError
from stormproof.lightning import internals, logged_metrics
from stormproof.lightning.layout import Layout
from stormproof.resume import snapshot
from stormproof.resume.snapshot_state import Snapshot
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import (
    LIGHTNING_WARNING_FILTERS,
    IndexDataset,
    RegressionModule,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


def _capture(trainer: Any, module: Any, **options: bool) -> dict[str, Any]:
    return snapshot.capture(trainer, module, Layout.of(trainer), **options)


class _Rich(ValidatedRegressionModule):
    """Draws random numbers, keeps running statistics and a metric."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.mean = MeanMetric()

    def training_step(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(self.norm(batch + torch.randn_like(batch) + random.random()), batch_idx)
        self.mean.update(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


class _Between(pl.Callback):
    """Calls ``function(trainer, module)`` between two batches, with the place from 0."""

    def __init__(self, function: Callable[[Any, Any, int], Any]) -> None:
        self.function, self.place = function, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        internals.call_between_batches(trainer, lambda: self._call(trainer, pl_module))

    def _call(self, trainer: Any, pl_module: Any) -> None:
        self.function(trainer, pl_module, self.place)
        self.place += 1


def _without_loops(checkpoint: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _shuffled(samples: int = 12) -> Any:
    return resumable(DataLoader(IndexDataset(samples), batch_size=2, shuffle=True), seed=3)


def _take_at_batch(position: int, **options: Any) -> dict[str, Any]:
    """A checkpoint of that place, as it comes out of its file."""
    snapshots: list[Any] = []

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == position:
            snapshots.append(_without_loops(_capture(trainer, pl_module, has_validated=True, has_ended=False)))

    torch.manual_seed(1)
    make_trainer(max_epochs=2, callbacks=[_Between(take)], **options).fit(
        make_module(kind=_Rich), _shuffled(), _shuffled(4)
    )
    return snapshots[0]


def _all_states(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """All that can be seen of a state, beside the weights, which are Lightning's to set back."""
    return {
        "metric": pl_module.mean.metric_state,
        "random": [random.random(), float(torch.rand(()))],
        "loops": internals.capture_loops(trainer),
        "logged": str(logged_metrics.capture_logged(trainer)),
        "should_stop": trainer.should_stop,
        "order": [data_loader.state_dict()["batches"] for data_loader in snapshot.train_loaders(trainer)],
        "validation": [data_loader.state_dict()["epoch"] for data_loader in snapshot.val_loaders(trainer)],
    }


@pytest.mark.parametrize("place", [0, 1, 5, 6, 11])
def test_a_state_that_went_through_a_file_is_set_back_in_the_same_place(place: int, tmp_path: Path):
    loaded_states: list[Any] = []
    checkpoints: list[Any] = []

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == place:
            trainer.should_stop = place == 5  # as early stopping would
            checkpoints.append(_without_loops(_capture(trainer, pl_module, has_validated=True, has_ended=False)))
            loaded_states.append(_without_loops(_all_states(trainer, pl_module)))

    class _Loads(_Between):
        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            self.part = snapshot.select_rank(checkpoint, Layout())

    def set_back(trainer: Any, pl_module: Any, at: int) -> None:
        if at == 0:
            snapshot.restore(trainer, pl_module, loads.part)
            loaded_states.append(_without_loops(_all_states(trainer, pl_module)))
            trainer.should_stop = True

    loads = _Loads(set_back)
    options = {"val_check_interval": 3, "max_epochs": 2}
    torch.manual_seed(1)
    make_trainer(callbacks=[_Between(take)], **options).fit(make_module(kind=_Rich), _shuffled(), _shuffled(4))
    random.seed(99)
    torch.manual_seed(99)
    torch.save(checkpoints[0], tmp_path / "x.ckpt")
    fit = make_trainer(callbacks=[loads], **options)
    fit.fit(make_module(kind=_Rich), _shuffled(), _shuffled(4), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    torch.testing.assert_close(loaded_states[1].pop("metric"), loaded_states[0].pop("metric"), rtol=0, atol=0)
    assert loaded_states[1] == loaded_states[0]


def test_taking_a_state_changes_nothing_of_the_run():
    ended: list[Any] = []
    for takes in (False, True):

        def take(trainer: Any, pl_module: Any, at: int, takes: bool = takes) -> None:
            if takes:
                _capture(trainer, pl_module, has_validated=True, has_ended=False)

        torch.manual_seed(1)
        random.seed(1)
        rich = make_module(kind=_Rich)
        fit = make_trainer(max_epochs=2, callbacks=[_Between(take)])
        fit.fit(rich, _shuffled(), _shuffled(4))
        ended.append(str(rich.state_dict()) + str(fit.callback_metrics) + str(random.random()) + str(torch.rand(1)))
    assert ended[0] == ended[1]


def test_each_checkpoint_has_a_name_of_its_own():
    first, second = _take_at_batch(0), _take_at_batch(0)
    assert first["stormproof"]["id"] != second["stormproof"]["id"]


def test_it_is_lightning_s_checkpoint_and_one_key_more():
    checkpoint = _take_at_batch(3)
    assert {"state_dict", "optimizer_states", "loops", "epoch", "global_step", "callbacks"} <= checkpoint.keys()
    assert (checkpoint["global_step"], checkpoint["epoch"]) == (3, 0)
    assert set(checkpoint["stormproof"]) == {"format", "id", "shared", "ranks"}


def test_at_the_end_of_a_training_there_is_no_place_in_an_epoch_and_the_loaders_begin_a_pass():
    fit, rich, data = make_trainer(max_epochs=2), make_module(kind=_Rich), _shuffled()
    fit.fit(rich, data, _shuffled(4))
    our_entry = _without_loops(_capture(fit, rich, has_validated=True, has_ended=True))["stormproof"]
    assert our_entry["shared"]["loops"] is None
    assert [(state["epoch"], state["is_finished"]) for state in our_entry["ranks"][0]["train_loaders"]] == [(1, True)]


def test_of_another_number_of_ranks_no_two_draw_the_same_random_numbers():
    checkpoint = _take_at_batch(2)
    checkpoint["stormproof"]["ranks"] *= 2
    parts = [snapshot.select_rank(deepcopy(checkpoint), Layout(rank, world_size=3)) for rank in range(3)]
    states = [part.rank_state.rng["torch"] for part in parts]
    assert not any(torch.equal(states[first], states[second]) for first, second in ((0, 1), (0, 2), (1, 2)))
    assert {len(part.snapshot.rank_states) for part in parts} == {2}
    second = deepcopy(checkpoint)
    second["stormproof"]["ranks"][0]["rng"]["torch"] = torch.Generator().manual_seed(5).get_state()
    another_run = snapshot.select_rank(second, Layout(world_size=3)).rank_state.rng["torch"]
    assert not torch.equal(another_run, states[0])


def test_a_checkpoint_that_does_not_say_how_many_batches_a_step_had_is_for_as_many_ranks():
    checkpoint = _take_at_batch(2)
    del checkpoint["stormproof"]["shared"]["accumulated"]
    assert snapshot.select_rank(deepcopy(checkpoint), Layout())
    with pytest.raises(NotResumableError, match="step 2 was saved with world size 1 by an earlier release"):
        snapshot.select_rank(checkpoint, Layout(world_size=2))


def test_the_state_is_the_same_dict_after_a_round_trip():
    saved = _take_at_batch(2)["stormproof"]
    again = Snapshot.from_dict(saved).to_dict()
    assert again.keys() == saved.keys()
    assert again["shared"] == saved["shared"]
    for rank, other in zip(again["ranks"], saved["ranks"], strict=True):
        assert rank.keys() == other.keys()
        assert all(rank[key] is other[key] for key in other)


def test_a_checkpoint_of_an_earlier_release_has_defaults_and_a_required_field_is_named():
    saved = _take_at_batch(2)["stormproof"]
    optional_keys = saved["shared"].keys() - {"loops", "should_stop"}
    for key in optional_keys:
        del saved["shared"][key]
    for key in ("generators", "averaged_buffers", "gradients", "parameters", "entries"):
        del saved["ranks"][0][key]
    read = Snapshot.from_dict(saved)
    assert (read.job_state.accumulated, read.job_state.is_sharded, read.rank_states[0].entries) == (None, False, ())
    del saved["ranks"][0]["rng"]
    with pytest.raises(KeyError, match="rng"):
        Snapshot.from_dict(saved)
    with pytest.raises(NotResumableError, match=r"saved by an earlier release of stormproof, which did not save 'rng'"):
        snapshot.select_rank({"stormproof": saved, "global_step": 2}, Layout())


def test_a_later_release_s_checkpoint_is_refused_in_a_sentence():
    checkpoint = _take_at_batch(2)
    checkpoint["stormproof"]["format"] += 1
    with pytest.raises(NotResumableError, match=r"step 2 was saved by a later release of stormproof\. Update"):
        snapshot.select_rank(checkpoint, Layout())


def test_each_rank_takes_its_own_part_and_its_callbacks_states():
    checkpoint = _take_at_batch(2)
    checkpoint["callbacks"] = {"mine": "of rank 0"}
    saved = checkpoint["stormproof"]["ranks"][0]
    checkpoint["stormproof"]["ranks"] = [
        {**saved, "callbacks": None, "train_loaders": [{"at": 0}, None]},
        {**saved, "callbacks": {"mine": "of rank 1"}, "train_loaders": [{"at": 1}, None]},
    ]
    for rank in (1, 0):
        without_loops = {**checkpoint, "loops": {"fit_loop": {"state_dict": {}}}}
        part = snapshot.select_rank(without_loops, Layout(rank, world_size=2))
        assert part.snapshot.id == checkpoint["stormproof"]["id"]
        assert part.rank_state.train_loaders == [{"at": rank}, None]
        assert without_loops["callbacks"] == {"mine": f"of rank {rank}"}
        assert without_loops["loops"]["fit_loop"]["state_dict"] == {"combined_loader": [{"at": rank}]}


def test_loaders_are_found_in_any_collection_and_before_validation_there_are_none():
    loaders: list[Any] = []

    class _Many(RegressionModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch["b"][0], batch_idx)

    def look(trainer: Any, pl_module: Any, at: int) -> None:
        loaders.append((snapshot.train_loaders(trainer), snapshot.val_loaders(trainer)))

    first_loader, second_loader = _shuffled(), make_loader()
    make_trainer(callbacks=[_Between(look)]).fit(make_module(kind=_Many), {"a": first_loader, "b": [second_loader]})
    train, val = loaders[0]
    assert train[0] is first_loader
    assert len(train) == 2
    assert val == []


class _Statistics(_Rich):
    def training_step(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch + self.global_rank, batch_idx)


def _on_a_rank(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == 2:
            checkpoint = _capture(trainer, pl_module, has_validated=False, has_ended=False)
            buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers() if buffer.numel()}
            torch.save({"checkpoint": checkpoint, "buffers": buffers}, f"{folder}/{rank}.pt")

    class _Mine(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"rank": rank}

    fit = make_trainer(callbacks=[_Between(take), _Mine()], strategy="ddp", devices=2)
    fit.fit(make_module(kind=_Statistics), _shuffled(), _shuffled(4))


@pytest.mark.slow
def test_two_ranks_keep_the_buffers_and_the_callbacks_in_which_they_differ(tmp_path: Path):
    call_on_two_ranks(_on_a_rank, str(tmp_path), get_free_port())
    rank_zero, rank_one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    parts = rank_zero["checkpoint"]["stormproof"]["ranks"]
    assert rank_one["checkpoint"]["stormproof"]["ranks"] is None  # complete on rank 0 alone
    assert parts[0]["buffers"] == {}
    assert set(parts[1]["buffers"]) == {"norm.running_mean", "norm.running_var"}
    assert all(torch.equal(buffer, rank_one["buffers"][name]) for name, buffer in parts[1]["buffers"].items())
    assert parts[0]["callbacks"] is None
    assert [state for state in parts[1]["callbacks"].values() if state.get("rank") == 1]


class _OfRank(_Rich):
    """Uses a different learning rate and checkpoint entries on each rank."""

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1 / (1 + self.global_rank))

    def on_save_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        rank = self.global_rank
        checkpoint["mine"] = {"same": 1, "rank": rank, "tensor": torch.full((2,), float(rank)), "list": [rank, "a"]}


def _take_on_a_rank(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == 1:
            with warnings.catch_warnings(record=True) as warning_records:
                warnings.simplefilter("always")
                checkpoint = snapshot.capture(
                    trainer, pl_module, Layout.of(trainer), has_validated=False, has_ended=False
                )
            torch.save((checkpoint, [str(warning.message) for warning in warning_records]), f"{folder}/{rank}.pt")

    make_trainer(callbacks=[_Between(take)], strategy="ddp", devices=2).fit(
        make_module(kind=_OfRank), _shuffled(), _shuffled(4)
    )


@pytest.mark.slow
def test_two_ranks_keep_their_own_entries_and_differing_learning_rates_are_reported(tmp_path: Path):
    call_on_two_ranks(_take_on_a_rank, str(tmp_path), get_free_port())
    checkpoint, messages = torch.load(tmp_path / "0.pt", weights_only=True)
    assert (
        len([message for message in messages if message.startswith("Optimizer hyperparameters of rank 1 (such")]) == 1
    )
    rank_zero, rank_one = checkpoint["stormproof"]["ranks"]
    assert rank_zero["entries"] == []
    assert [keys for keys, _ in rank_one["entries"]] == [["mine", "rank"], ["mine", "tensor"], ["mine", "list"]]
    snapshot.restore_entries(checkpoint, Layout(rank=1, world_size=2))
    assert (checkpoint["mine"]["same"], checkpoint["mine"]["rank"]) == (1, 1)
    assert checkpoint["mine"]["tensor"].tolist() == [1, 1]
    assert checkpoint["mine"]["list"] == [1, "a"]

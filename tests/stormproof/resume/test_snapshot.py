import io
import os
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
from stormproof.resume import snapshot
from stormproof.resume.snapshot_state import Snapshot
from tests.support.ranks import call_on_two_ranks
from tests.support.small_fits import LIGHTNINGS_OWN, Numbers, Plain, Validated, loader, module, trainer

pytestmark = LIGHTNINGS_OWN


class _Rich(Validated):
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


def _plain(checkpoint: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _shuffled(samples: int = 12) -> Any:
    return resumable(DataLoader(Numbers(samples), batch_size=2, shuffle=True), seed=3)


def _taken(place: int, **options: Any) -> dict[str, Any]:
    """A checkpoint of that place, as it comes out of its file."""
    found: list[Any] = []

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == place:
            found.append(_plain(snapshot.take(trainer, pl_module, validated=True, ended=False)))

    torch.manual_seed(1)
    trainer(max_epochs=2, callbacks=[_Between(take)], **options).fit(module(kind=_Rich), _shuffled(), _shuffled(4))
    return found[0]


def _everything(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """All that can be seen of a state, beside the weights, which are Lightning's to set back."""
    return {
        "metric": pl_module.mean.metric_state,
        "random": [random.random(), float(torch.rand(()))],
        "loops": internals.loops_state(trainer),
        "logged": str(logged_metrics.logged_state(trainer)),
        "should_stop": trainer.should_stop,
        "order": [each.state_dict()["batches"] for each in snapshot.train_loaders(trainer)],
        "validation": [each.state_dict()["epoch"] for each in snapshot.val_loaders(trainer)],
    }


@pytest.mark.parametrize("place", [0, 1, 5, 6, 11])
def test_a_state_that_went_through_a_file_is_set_back_in_the_same_place(place: int, tmp_path: Path):
    seen: list[Any] = []
    checkpoints: list[Any] = []

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == place:
            trainer.should_stop = place == 5  # as early stopping would
            checkpoints.append(_plain(snapshot.take(trainer, pl_module, validated=True, ended=False)))
            seen.append(_plain(_everything(trainer, pl_module)))

    class _Loads(_Between):
        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            self.part = snapshot.own_part(checkpoint, rank=0, ranks=1)

    def set_back(trainer: Any, pl_module: Any, at: int) -> None:
        if at == 0:
            snapshot.restore(trainer, pl_module, loads.part)
            seen.append(_plain(_everything(trainer, pl_module)))
            trainer.should_stop = True

    loads = _Loads(set_back)
    options = {"val_check_interval": 3, "max_epochs": 2}
    torch.manual_seed(1)
    trainer(callbacks=[_Between(take)], **options).fit(module(kind=_Rich), _shuffled(), _shuffled(4))
    random.seed(99)
    torch.manual_seed(99)
    torch.save(checkpoints[0], tmp_path / "x.ckpt")
    fit = trainer(callbacks=[loads], **options)
    fit.fit(module(kind=_Rich), _shuffled(), _shuffled(4), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    torch.testing.assert_close(seen[1].pop("metric"), seen[0].pop("metric"), rtol=0, atol=0)
    assert seen[1] == seen[0]


def test_taking_a_state_changes_nothing_of_the_run():
    ended: list[Any] = []
    for takes in (False, True):

        def take(trainer: Any, pl_module: Any, at: int, takes: bool = takes) -> None:
            if takes:
                snapshot.take(trainer, pl_module, validated=True, ended=False)

        torch.manual_seed(1)
        random.seed(1)
        rich = module(kind=_Rich)
        fit = trainer(max_epochs=2, callbacks=[_Between(take)])
        fit.fit(rich, _shuffled(), _shuffled(4))
        ended.append(str(rich.state_dict()) + str(fit.callback_metrics) + str(random.random()) + str(torch.rand(1)))
    assert ended[0] == ended[1]


def test_each_checkpoint_has_a_name_of_its_own():
    first, second = _taken(0), _taken(0)
    assert first["stormproof"]["id"] != second["stormproof"]["id"]


def test_it_is_lightning_s_checkpoint_and_one_key_more():
    checkpoint = _taken(3)
    assert {"state_dict", "optimizer_states", "loops", "epoch", "global_step", "callbacks"} <= checkpoint.keys()
    assert (checkpoint["global_step"], checkpoint["epoch"]) == (3, 0)
    assert set(checkpoint["stormproof"]) == {"format", "id", "shared", "ranks"}


def test_at_the_end_of_a_training_there_is_no_place_in_an_epoch_and_the_loaders_begin_a_pass():
    fit, rich, data = trainer(max_epochs=2), module(kind=_Rich), _shuffled()
    fit.fit(rich, data, _shuffled(4))
    ours = _plain(snapshot.take(fit, rich, validated=True, ended=True))["stormproof"]
    assert ours["shared"]["loops"] is None
    assert [(state["epoch"], state["ended"]) for state in ours["ranks"][0]["train_loaders"]] == [(1, True)]


def test_of_another_number_of_ranks_no_two_draw_the_same_random_numbers():
    checkpoint = _taken(2)
    checkpoint["stormproof"]["ranks"] *= 2
    parts = [snapshot.own_part(deepcopy(checkpoint), rank, ranks=3) for rank in range(3)]
    states = [part.own.rng["torch"] for part in parts]
    assert not any(torch.equal(states[one], states[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    assert {len(part.snapshot.ranks) for part in parts} == {2}
    other = deepcopy(checkpoint)
    other["stormproof"]["ranks"][0]["rng"]["torch"] = torch.Generator().manual_seed(5).get_state()
    another_run = snapshot.own_part(other, 0, ranks=3).own.rng["torch"]
    assert not torch.equal(another_run, states[0])


def test_a_checkpoint_that_does_not_say_how_many_batches_a_step_had_is_for_as_many_ranks():
    checkpoint = _taken(2)
    del checkpoint["stormproof"]["shared"]["accumulated"]
    assert snapshot.own_part(deepcopy(checkpoint), 0, ranks=1)
    with pytest.raises(NotResumableError, match="step 2 was saved by a job of 1 ranks and an earlier release"):
        snapshot.own_part(checkpoint, 0, ranks=2)


def test_the_state_is_the_same_dict_after_a_round_trip():
    saved = _taken(2)["stormproof"]
    again = Snapshot.from_dict(saved).to_dict()
    assert again.keys() == saved.keys()
    assert again["shared"] == saved["shared"]
    for rank, other in zip(again["ranks"], saved["ranks"], strict=True):
        assert rank.keys() == other.keys()
        assert all(rank[key] is other[key] for key in other)


def test_a_checkpoint_of_an_earlier_release_has_defaults_and_a_required_field_is_named():
    saved = _taken(2)["stormproof"]
    for key in ("accumulated", "untouched", "spread", "averaging", "syncs_buffers", "reduction_order"):
        del saved["shared"][key]
    for key in ("generators", "averaged_buffers", "gradients", "parameters", "entries"):
        del saved["ranks"][0][key]
    read = Snapshot.from_dict(saved)
    assert (read.shared.accumulated, read.shared.spread, read.ranks[0].entries) == (None, False, ())
    del saved["ranks"][0]["rng"]
    with pytest.raises(KeyError, match="rng"):
        Snapshot.from_dict(saved)


def test_a_later_release_s_checkpoint_is_refused_in_a_sentence():
    checkpoint = _taken(2)
    checkpoint["stormproof"]["format"] += 1
    with pytest.raises(NotResumableError, match="step 2 was saved by a later release of stormproof: update it"):
        snapshot.own_part(checkpoint, 0, 1)


def test_each_rank_takes_its_own_part_and_its_callbacks_states():
    checkpoint = _taken(2)
    checkpoint["callbacks"] = {"mine": "of rank 0"}
    saved = checkpoint["stormproof"]["ranks"][0]
    checkpoint["stormproof"]["ranks"] = [
        {**saved, "callbacks": None, "train_loaders": [{"at": 0}, None]},
        {**saved, "callbacks": {"mine": "of rank 1"}, "train_loaders": [{"at": 1}, None]},
    ]
    for rank in (1, 0):
        given = {**checkpoint, "loops": {"fit_loop": {"state_dict": {}}}}
        part = snapshot.own_part(given, rank, 2)
        assert part.snapshot.id == checkpoint["stormproof"]["id"]
        assert part.own.train_loaders == [{"at": rank}, None]
        assert given["callbacks"] == {"mine": f"of rank {rank}"}
        assert given["loops"]["fit_loop"]["state_dict"] == {"combined_loader": [{"at": rank}]}


def test_loaders_are_found_in_any_collection_and_before_validation_there_are_none():
    found: list[Any] = []

    class _Many(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch["b"][0], batch_idx)

    def look(trainer: Any, pl_module: Any, at: int) -> None:
        found.append((snapshot.train_loaders(trainer), snapshot.val_loaders(trainer)))

    one, two = _shuffled(), loader()
    trainer(callbacks=[_Between(look)]).fit(module(kind=_Many), {"a": one, "b": [two]})
    train, val = found[0]
    assert train[0] is one
    assert len(train) == 2
    assert val == []


class _Statistics(_Rich):
    def training_step(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch + self.global_rank, batch_idx)


def _on_a_rank(rank: int, folder: str, port: int) -> None:
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == 2:
            checkpoint = snapshot.take(trainer, pl_module, validated=False, ended=False)
            buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers() if buffer.numel()}
            torch.save({"checkpoint": checkpoint, "buffers": buffers}, f"{folder}/{rank}.pt")

    class _Mine(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"rank": rank}

    fit = trainer(callbacks=[_Between(take), _Mine()], strategy="ddp", devices=2)
    fit.fit(module(kind=_Statistics), _shuffled(), _shuffled(4))


@pytest.mark.slow
def test_two_ranks_keep_the_buffers_and_the_callbacks_in_which_they_differ(tmp_path: Path):
    call_on_two_ranks(_on_a_rank, str(tmp_path), get_free_port())
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    parts = zero["checkpoint"]["stormproof"]["ranks"]
    assert one["checkpoint"]["stormproof"]["ranks"] is None  # complete on rank 0 alone
    assert parts[0]["buffers"] == {}
    assert set(parts[1]["buffers"]) == {"norm.running_mean", "norm.running_var"}
    assert all(torch.equal(buffer, one["buffers"][name]) for name, buffer in parts[1]["buffers"].items())
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
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )

    def take(trainer: Any, pl_module: Any, at: int) -> None:
        if at == 1:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                checkpoint = snapshot.take(trainer, pl_module, validated=False, ended=False)
            torch.save((checkpoint, [str(each.message) for each in caught]), f"{folder}/{rank}.pt")

    trainer(callbacks=[_Between(take)], strategy="ddp", devices=2).fit(module(kind=_OfRank), _shuffled(), _shuffled(4))


@pytest.mark.slow
def test_two_ranks_keep_their_own_entries_and_differing_learning_rates_are_reported(tmp_path: Path):
    call_on_two_ranks(_take_on_a_rank, str(tmp_path), get_free_port())
    checkpoint, messages = torch.load(tmp_path / "0.pt", weights_only=True)
    assert len([each for each in messages if each.startswith("Optimizer hyperparameters of rank 1 (such")]) == 1
    zero, one = checkpoint["stormproof"]["ranks"]
    assert zero["entries"] == []
    assert [keys for keys, _ in one["entries"]] == [["mine", "rank"], ["mine", "tensor"], ["mine", "list"]]
    snapshot.restore_entries(checkpoint, rank=1, ranks=2)
    assert (checkpoint["mine"]["same"], checkpoint["mine"]["rank"]) == (1, 1)
    assert checkpoint["mine"]["tensor"].tolist() == [1, 1]
    assert checkpoint["mine"]["list"] == [1, "a"]

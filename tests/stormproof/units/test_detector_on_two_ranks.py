"""Two ranks find what one process finds in all of their data, and both know it."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from stormproof import DeadNeuronDetector
from stormproof.distributed.rank import global_rank
from tests.stormproof.units.unit_fits import (
    OnStep,
    TrainingModule,
    ValidatedModule,
    constant_units,
    make_detector,
    make_inputs,
    make_loader,
    set_unit_weights,
)
from tests.support.ranks import run_on_two_ranks
from tests.support.small_fits import make_trainer

pytestmark = pytest.mark.slow

SAMPLES = 11  # of which the ranks get six each, one of them twice
RANK_INPUTS = {0: torch.arange(1.0, 6.0)[:, None], 1: -torch.arange(1.0, 4.0)[:, None]}


class Net(nn.Module):
    """A convolution, a function, tokens and a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dense, self.last = nn.Conv1d(2, 6, 3), nn.Linear(6, 5), nn.Linear(5, 1)
        self.act = nn.Tanh()
        set_unit_weights(self.conv, 1, bias=-100)
        set_unit_weights(self.dense, 2, bias=100)

    def hidden(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = functional.relu(self.conv(x))
        return channels, self.act(self.dense(channels.transpose(1, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(x)[1])


class Signed(nn.Module):
    """Unit 0 fires on inputs above 0, unit 1 on those below, unit 2 never."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.out = nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
            self.a.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.act(self.a(x)))


class Sometimes(nn.Module):
    """Calls one part for inputs above 0, and another for those below, which only one rank has."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.below = Signed(), Signed()
        self.plain, self.after = nn.Linear(1, 2), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x[0] > 0:
            return self.above(x)
        return self.below(x) + self.after(functional.relu(self.plain(x)))


def fit(
    net: nn.Module, train: Any, val: Any, *before: pl.Callback, dead: DeadNeuronDetector | None = None, **options: Any
) -> dict[str, Any]:
    dead = dead or make_detector()
    lr = options.pop("lr", 0.0)
    kind = TrainingModule if val is None else ValidatedModule
    module = kind(net, lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9))
    pl_trainer = make_trainer(
        callbacks=[*before, dead], devices=2, strategy="ddp_find_unused_parameters_true", max_epochs=2, **options
    )
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        pl_trainer.fit(module, train, val)
    return {
        "said": [sentence for record in records if "was not called" in (sentence := str(record.message))],
        "dead": {name: units.tolist() for name, units in dead.dead_units.items()},
        "activity": {name: asdict(activity) for name, activity in dead.activity.items()},
        "counts": dead.dead_counts,
        "revived": dead.reinitialized,
        "weights": dict(module.net.state_dict()),
    }


def _on_two_ranks(folder: Path) -> None:
    rank = global_rank()
    sampler_options = {"use_distributed_sampler": False}
    rank_batches = make_loader(RANK_INPUTS[rank], 2)  # three batches and two
    mine_alone, ones = make_loader(RANK_INPUTS[rank][:3], 2), make_loader(torch.ones(4, 1))
    equal = make_loader(RANK_INPUTS[rank][:2], 1)
    divided = [DataLoader(TensorDataset(make_inputs(count, 2, 7)), batch_size=4) for count in (16, SAMPLES)]
    kill = OnStep(3, lambda module: set_unit_weights(module.net.a, 0, bias=-100))
    record = {
        "divided": fit(Net(), *divided, lr=0.01),
        "unequal": fit(Signed(), equal, rank_batches, **sampler_options),
        "sample": fit(Signed(), equal, None, dead=make_detector(every_n_steps=1), **sampler_options),
        "sometimes": fit(Sometimes(), equal, rank_batches, dead=make_detector(every_n_steps=1), **sampler_options),
        "sometimes, sample": fit(Sometimes(), equal, None, dead=make_detector(every_n_steps=1), **sampler_options),
        "killed": fit(Signed(), equal, rank_batches, kill, dead=make_detector(every_n_steps=1), **sampler_options),
        "seen in training": fit(Signed(), mine_alone, ones, dead=make_detector(every_n_steps=1), **sampler_options),
        "revived": fit(Signed(), equal, rank_batches, dead=make_detector(reinit_every_n_steps=2), **sampler_options),
        "revived, training": fit(Net(), *divided, dead=make_detector(reinit_every_n_steps=2), lr=0.01),
    }
    torch.save(record, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(__file__, str(folder))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


CASES = [
    "divided", "unequal", "sample", "sometimes", "sometimes, sample", "killed", "seen in training", "revived",
    "revived, training",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_know_the_same(ranks: list[dict[str, Any]], case: str):
    first, second = (dict(rank[case]) for rank in ranks)
    one_weights, other_weights = first.pop("weights"), second.pop("weights")
    assert first == second
    assert all(torch.equal(one_weights[name], other_weights[name]) for name in one_weights)


def test_divided_data_is_one_pass(ranks: list[dict[str, Any]]):
    result = ranks[0]["divided"]
    net = Net()
    net.load_state_dict(result["weights"])
    with torch.inference_mode():
        channels, hidden = net.hidden(make_inputs(SAMPLES, 2, 7))
    assert result["dead"] == {"net.dense": constant_units(channels, 1), "net.act": constant_units(hidden, 2)}
    assert result["dead"]["net.dense"][1]
    assert result["dead"]["net.act"][2]
    assert result["activity"]["net.act"]["inputs"] == SAMPLES + 1


def test_a_unit_that_is_alive_on_one_rank_alone_is_alive(ranks: list[dict[str, Any]]):
    result = ranks[0]["unequal"]
    assert result["dead"] == {"net.act": [False, False, True]}
    assert result["activity"]["net.act"]["inputs"] == 8


def test_a_sample_is_that_of_all_ranks(ranks: list[dict[str, Any]]):
    activity = ranks[0]["sample"]["activity"]["net.act"]
    assert (activity["inputs"], activity["dead"], activity["bound"]) == (4, 1, 3 / 4)
    assert activity["sparsity"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("case", ["sometimes", "sometimes, sample"])
def test_a_part_that_one_rank_alone_calls_is_known_to_both(ranks: list[dict[str, Any]], case: str):
    activity = ranks[0][case]["activity"]
    assert set(activity) == {"net.above.act", "net.below.act", "net.after"}
    assert ranks[0][case]["said"] == []
    assert activity["net.above.act"]["dead"] == activity["net.below.act"]["dead"] == 2
    counts = (5, 3) if case == "sometimes" else (2, 2)
    assert (activity["net.above.act"]["inputs"], activity["net.below.act"]["inputs"]) == counts
    if case == "sometimes":
        assert ranks[0][case]["dead"]["net.above.act"] == [False, True, True]
        assert ranks[0][case]["dead"]["net.below.act"] == [True, False, True]


def test_the_last_sign_of_life_is_that_of_any_rank(ranks: list[dict[str, Any]]):
    activity = ranks[0]["killed"]["activity"]["net.act"]
    assert (activity["dead"], activity["dead_from_start"], activity["since_step"]) == (2, 1, 0)
    assert ranks[0]["killed"]["counts"]["net.act"] == [(2, 1), (4, 2)]


def test_who_has_lived_on_any_rank_was_not_born_dead(ranks: list[dict[str, Any]]):
    activity = ranks[0]["seen in training"]["activity"]["net.act"]
    assert (activity["dead"], activity["dead_from_start"]) == (3, 1)


def test_only_what_is_dormant_on_all_ranks_together_is_revived(ranks: list[dict[str, Any]]):
    result = ranks[0]["revived"]
    assert result["revived"] == {"net.act": 1}
    before = Signed().state_dict()
    after = result["weights"]
    assert torch.equal(after["a.weight"][:2], before["a.weight"][:2])
    assert not torch.equal(after["a.weight"][2], before["a.weight"][2])


def test_ranks_that_train_are_revived_alike(ranks: list[dict[str, Any]]):
    assert ranks[0]["revived, training"]["revived"]["net.dense"] >= 1


if __name__ == "__main__":
    _on_two_ranks(Path(sys.argv[1]))

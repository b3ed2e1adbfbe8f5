"""Two ranks share a pass: the parts of each, put together, are the pass of one process, resumed ones included."""

import random
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler

from stormproof import resumable
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.errors import NotResumableError
from tests.stormproof.data.loader_kinds import NoisyDataset, ShufflingSampler, UnevenBatchSampler
from tests.support.ranks import run_on_two_ranks

pytestmark = pytest.mark.slow

EPOCHS, SAMPLES = 2, 11
KINDS: dict[str, Callable[..., Any]] = {
    "sequential": lambda **options: resumable(DataLoader(NoisyDataset(), batch_size=2, **options), seed=1),
    "shuffle": lambda **options: resumable(DataLoader(NoisyDataset(), batch_size=2, shuffle=True, **options), seed=1),
    "drop_last": lambda **options: resumable(
        DataLoader(NoisyDataset(), batch_size=4, drop_last=True, **options), seed=1
    ),
    "no batches": lambda **options: resumable(DataLoader(NoisyDataset(), batch_size=None, **options), seed=1),
    "sampler": lambda **options: resumable(
        DataLoader(NoisyDataset(), batch_size=2, sampler=ShufflingSampler(random.Random(2)), **options), seed=1
    ),
    "batch sampler": lambda **options: resumable(
        DataLoader(NoisyDataset(), batch_sampler=UnevenBatchSampler(), **options), seed=1
    ),
    "not padded": lambda **options: resumable(
        DataLoader(NoisyDataset(), batch_size=2, **options), seed=1, padded=False
    ),
    "not divided": lambda **options: resumable(
        DataLoader(NoisyDataset(), batch_size=2, **options), seed=1, distributed=False
    ),
}


class Journal(pl.LightningModule):
    """Writes down the batches of each epoch, and where the loader was after the first of them."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.loader, self.epochs, self.states = loader, [[] for _ in range(EPOCHS)], []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.epochs[self.current_epoch].append(batch)
        if batch_idx == 0:
            self.states.append(self.loader.state_dict())
        return self.weight * batch.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _on_two_ranks(folder: Path) -> None:
    """Loaders are built before there is a process group; one trains, by then the others can be iterated too."""
    loaders = {kind: make() for kind, make in KINDS.items()}
    module = Journal(loaders["shuffle"])
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=EPOCHS, strategy="ddp", devices=2, accelerator="cpu", **quiet)
    trainer.fit(module, loaders["shuffle"])
    rank = trainer.global_rank
    played = {kind: [list(loader) for _ in range(EPOCHS)] for kind, loader in loaders.items() if kind != "shuffle"}
    played["shuffle"] = module.epochs
    resumed = []
    for state in module.states:
        fresh = KINDS["shuffle"](num_workers=1)
        fresh.load_state_dict(state)
        resumed.append(list(fresh))
    user_sampler = DistributedSampler(NoisyDataset(), shuffle=False, num_replicas=2, rank=rank)
    resumable_loader = resumable(DataLoader(NoisyDataset(), batch_size=2, sampler=user_sampler), seed=1)
    record = {
        "played": played,
        "resumed": resumed,
        "lengths": {kind: len(loader) for kind, loader in loaders.items()},
        "own": [list(resumable_loader) for _ in range(EPOCHS)],
        "state": module.states[0],
    }
    torch.save(record, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(__file__, str(folder))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def samples(batches: list[torch.Tensor]) -> list[list[float]]:
    return torch.cat([batch.reshape(-1, 4) for batch in batches]).tolist() if batches else []


@pytest.mark.parametrize("kind", ["sequential", "shuffle", "no batches", "sampler"])
@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_together_they_make_the_pass_of_one_process_and_fill_it_up_from_its_beginning(
    ranks: list[dict[str, Any]], kind: str, epoch: int
):
    alone = KINDS[kind]()
    for _ in range(epoch):
        list(alone)
    whole = samples(list(alone))
    first, second = (samples(rank["played"][kind][epoch]) for rank in ranks)
    together = [sample for pair in zip(first, second, strict=True) for sample in pair]
    assert together[:SAMPLES] == whole
    assert [int(sample[0]) for sample in together[SAMPLES:]] == [int(whole[0][0])]
    assert sorted(int(sample[0]) for sample in together[:SAMPLES]) == list(range(SAMPLES))


def test_what_is_not_padded_comes_once_with_the_noise_that_it_has_in_one_process(ranks: list[dict[str, Any]]):
    whole = samples(list(KINDS["not padded"]()))
    played = [samples(rank["played"]["not padded"][0]) for rank in ranks]
    assert played == [whole[::2], whole[1::2]]


def test_a_batch_samplers_batches_are_dealt_out_whole(ranks: list[dict[str, Any]]):
    alone = KINDS["batch sampler"]()
    for epoch in range(EPOCHS):
        whole = [samples([batch]) for batch in alone]
        dealt = [[samples([batch]) for batch in rank["played"]["batch sampler"][epoch]] for rank in ranks]
        together = [batch for pair in zip_longest(*dealt) for batch in pair]
        assert together[:5] == whole
        assert [sample[0] for sample in together[5]] == [sample[0] for sample in whole[0]]


def test_the_part_of_each_is_the_one_that_torchs_distributed_sampler_gives(ranks: list[dict[str, Any]]):
    for number, rank in enumerate(ranks):
        expected = list(DistributedSampler(NoisyDataset(), num_replicas=2, rank=number, shuffle=False))
        for played in (rank["played"]["sequential"], rank["own"]):
            assert [[int(sample[0]) for sample in samples(epoch)] for epoch in played] == [expected] * EPOCHS
        assert (
            rank["own"][0][0].tolist() == rank["played"]["sequential"][0][0].tolist()
        )  # the same place, the same noise


def test_a_loader_that_is_not_to_be_divided_gives_all_to_each(ranks: list[dict[str, Any]]):
    whole = [list(range(SAMPLES))] * EPOCHS
    for rank in ranks:
        assert [[int(sample[0]) for sample in samples(epoch)] for epoch in rank["played"]["not divided"]] == whole


def test_it_has_as_many_batches_as_it_says(ranks: list[dict[str, Any]]):
    for rank in ranks:
        assert rank["lengths"] == {kind: len(epochs[0]) for kind, epochs in rank["played"].items()}
        assert rank["lengths"]["drop_last"] == 1
        assert rank["lengths"]["shuffle"] == 3


def test_each_rank_resumes_its_own_part(ranks: list[dict[str, Any]]):
    for rank in ranks:
        rest = [[batch.tolist() for batch in epoch] for epoch in rank["resumed"]]
        assert rest == [[batch.tolist() for batch in epoch[1:]] for epoch in rank["played"]["shuffle"]]


def test_one_process_goes_on_where_two_had_come(ranks: list[dict[str, Any]]):
    """They had taken a batch of two each."""
    alone = KINDS["shuffle"]()
    whole = samples(list(alone))
    alone.load_state_dict(ranks[0]["state"])
    assert samples(list(alone)) == whole[4:]
    assert samples(list(alone)) != whole  # the next epoch has an order of its own
    by_four = resumable(DataLoader(NoisyDataset(), batch_size=4, shuffle=True), seed=1)
    by_four.load_state_dict(ranks[0]["state"])
    assert samples(list(by_four)) == whole[4:]


def test_samples_that_are_no_whole_batches_of_this_job_are_a_sentence(ranks: list[dict[str, Any]]):
    by_three = resumable(DataLoader(NoisyDataset(), batch_size=3, shuffle=True), seed=1)
    by_three.load_state_dict(ranks[0]["state"])
    with pytest.raises(
        NotResumableError, match="had yielded 4 samples with world size 2, which is not a multiple of 1 x 3"
    ):
        next(iter(by_three))


if __name__ == "__main__":
    destroy_gloo_before_exit()
    _on_two_ranks(Path(sys.argv[1]))

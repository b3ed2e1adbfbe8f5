"""What the ranks of a job had, shared out among another number of them."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from torchmetrics import MaxMetric, MeanMetric, Metric, MinMetric, SumMetric
from torchmetrics.aggregation import CatMetric

from stormproof.data import rng
from stormproof.lightning import internals
from stormproof.lightning.layout import Layout
from stormproof.resume import metric_state, world_size_change
from stormproof.resume.snapshot_state import JobState, RankState, Snapshot

MERGED: dict[str, tuple[type[Metric], list[float]]] = {
    "added up": (SumMetric, [6.0, 0.0, 0.0]),
    "a mean": (MeanMetric, [2.0]),
    "the largest": (MaxMetric, [3.0, 3.0, 3.0]),
    "the smallest": (MinMetric, [1.0, 1.0, 1.0]),
}


class Own(Metric):
    """Reduced in a way of its own."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", torch.zeros(1), dist_reduce_fx=lambda values: values[0])

    def update(self, value: torch.Tensor) -> None:
        self.seen = self.seen + value

    def compute(self) -> torch.Tensor:
        return self.seen


def rank_states(kind: type[Metric], values: list[float]) -> list[dict[str, Any]]:
    """The state of a metric on each of the ranks that saw a value."""
    states = []
    for value in values:
        module = torch.nn.ModuleDict({"metric": kind()})
        module["metric"].update(torch.tensor(value))
        states.append(metric_state.capture(module))
    return states


def on_ranks(kind: type[Metric], states: list[dict[str, Any]], ranks: int) -> list[Metric]:
    """The metric on each of ``ranks`` that go on with them."""
    results = []
    for rank in range(ranks):
        module = torch.nn.ModuleDict({"metric": kind()})
        metric_state.restore(module, metric_state.merge(module, states, is_rank_zero=rank == 0))
        results.append(module["metric"])
    return results


@pytest.mark.parametrize(("kind", "expected"), MERGED.values(), ids=MERGED.keys())
def test_metrics_hold_together_what_they_held(kind: type[Metric], expected: list[float]):
    metrics = on_ranks(kind, rank_states(kind, [1.0, 2.0, 3.0]), ranks=3)
    assert [float(metric.compute()) for metric in metrics][: len(expected)] == expected


def test_what_is_concatenated_is_on_one_rank():
    first, second = on_ranks(CatMetric, rank_states(CatMetric, [1.0, 2.0, 3.0]), ranks=2)
    assert first.compute().tolist() == [1.0, 2.0, 3.0]
    assert second.value == []


def test_a_metric_with_a_reduction_of_its_own_begins_anew_and_is_named():
    states = rank_states(Own, [1.0, 2.0])
    with pytest.warns(UserWarning, match="after a change of the world size and are reset: metric"):
        (alone,) = on_ranks(Own, states, ranks=1)
    assert float(alone.seen) == 0.0
    assert not alone.update_called


def logged_entry(value: float, batches: float | None, reduce: str, should: bool = True) -> dict[str, Any]:
    size = None if batches is None else torch.tensor(batches)
    return {
        "value": torch.tensor(value), "cumulated_batch_size": size, "reduce": reduce, "sync": {"should": should}
    }  # fmt: skip


def test_values_that_are_being_added_up_are_put_together_on_rank_zero():
    three = [{"loss": logged_entry(value, 2.0, "torch.mean")} for value in (1.0, 2.0, 3.0)]
    rank_zero, rank_one = (world_size_change.merge_logged_results(three, rank)["loss"] for rank in (0, 1))
    assert (rank_zero["value"], rank_zero["cumulated_batch_size"]) == (6.0, 6.0)
    assert (rank_one["value"], rank_one["cumulated_batch_size"]) == (0.0, 0.0)


def test_an_extreme_goes_to_all_and_what_is_not_reduced_stays_with_its_rank():
    two_ranks = [
        {"most": logged_entry(value, None, "torch.max"), "own": logged_entry(value, 1.0, "torch.mean", should=False)}
        for value in (1.0, 2.0)
    ]
    for rank, expected_value in enumerate((1.0, 2.0, 2.0)):
        merged = world_size_change.merge_logged_results(two_ranks, rank)
        assert (merged["most"]["value"], merged["own"]["value"]) == (2.0, expected_value)


def test_a_value_logged_by_one_rank_only_is_kept():
    assert (
        world_size_change.merge_logged_results([{"loss": logged_entry(1.0, 2.0, "torch.mean")}, {}], rank=0)["loss"][
            "value"
        ]
        == 1.0
    )


def shared_out(
    results: list[dict[str, Any]],
    rank: int,
    ranks: int,
    generator: torch.Generator | None = None,
    tensor_parallel_sizes: tuple[int, int] = (1, 1),
) -> RankState:
    """Returns the state of a rank, from a checkpoint with one rank for each of ``results``, its logged values."""
    random = {"torch": (generator or torch.Generator()).get_state()}
    states = [
        RankState(
            rng=random, metrics={}, frozen={}, train_loaders=[], val_loaders=[], logged={"results": result}, buffers={},
            callbacks={}, validated=False,
        )
        for result in results
    ]  # fmt: skip
    counts = dict.fromkeys(("ready", "started", "processed", "completed"), 6)
    checkpoint = {
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": dict(counts), "current": dict(counts)}}}
    }
    saved_size, size = tensor_parallel_sizes
    job_state = JobState(loops=None, should_stop=False, accumulated=1, tensor_parallel_size=saved_size)
    saved = Snapshot("abc", job_state, states)
    return world_size_change.redistribute(saved, checkpoint, Layout(rank, ranks, size), 1)


@pytest.mark.parametrize(("saved", "resumed", "kept"), [(2, 3, True), (1, 2, False), (2, 1, False)])
def test_logged_values_are_kept_if_several_ranks_saved_and_several_resume(saved: int, resumed: int, kept: bool):
    results = [{"loss": logged_entry(1.0, 2.0, "torch.mean")}] * saved
    assert bool(shared_out(results, 0, resumed).logged["results"]) == kept


def test_random_numbers_differ_between_ranks_and_between_steps():
    generator, drawn = torch.Generator().manual_seed(1), set()
    for _ in range(2):
        for rank in range(2):
            rng.restore(shared_out([{}], rank, 2, generator).rng)
            drawn.add(float(torch.rand(())))
        torch.rand((), generator=generator)
    assert len(drawn) == 4


def test_ranks_of_a_tensor_parallel_group_count_as_one_rank_and_draw_the_same_random_numbers():
    results = [{"loss": logged_entry(value, 2.0, "torch.sum")} for value in (1.0, 1.0, 2.0, 2.0)]
    states = [shared_out(results, rank, 2, tensor_parallel_sizes=(2, 2)) for rank in range(2)]
    assert [float(state.logged["results"]["loss"]["value"]) for state in states] == [3.0, 3.0]
    assert torch.equal(states[0].rng["torch"], states[1].rng["torch"])


def test_as_many_groups_keep_the_state_of_each_group():
    results = [{"loss": logged_entry(value, 2.0, "torch.mean")} for value in (1.0, 2.0)]
    values = [
        float(shared_out(results, rank, 4, tensor_parallel_sizes=(1, 2)).logged["results"]["loss"]["value"])
        for rank in range(4)
    ]
    assert values == [1.0, 1.0, 2.0, 2.0]


def test_counts_of_batches_are_those_of_as_many_samples():
    counts = {"ready": 7, "started": 6, "processed": 6, "completed": 6}
    loop: Any = {"epoch_loop.batch_progress": {"total": {**counts, "ready": 13}, "current": dict(counts)}}
    internals.rescale_batch_counts(loop, Fraction(2, 1))
    assert loop["epoch_loop.batch_progress"]["current"]["completed"] == 12
    internals.rescale_batch_counts(loop, Fraction(1, 4))
    assert loop["epoch_loop.batch_progress"]["current"] == {"ready": 3, "started": 3, "processed": 3, "completed": 3}

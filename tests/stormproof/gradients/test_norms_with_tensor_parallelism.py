"""With tensor parallelism, norms and update ratios are those of a single device."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from stormproof.gradients.norms import GradientNorms, largest_entry
from tests.stormproof.gradients.norm_fits import FitCase, fit_with_monitor, reference_norms
from tests.support.ranks import call_on_ranks
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [pytest.mark.slow, *LIGHTNING_WARNING_FILTERS]

CASES = {2: FitCase(tensor_parallel=2), 4: FitCase(tensor_parallel=2, sharded=True)}
"""By number of ranks: tensor parallelism alone, and with FSDP2."""


def join_ranks(rank: int, ranks: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip


def measure_on_rank(rank: int, ranks: int, port: int, folder: Path) -> None:
    join_ranks(rank, ranks, port)
    result = read_history(fit_with_monitor(CASES[ranks], ranks))
    (folder / f"rank{rank}.json").write_text(json.dumps(result))


def read_history(monitor: Any) -> dict[str, Any]:
    history = monitor.history
    return {"norms": [record.norms for record in history], "updates": [asdict(record)["updates"] for record in history]}


@pytest.mark.parametrize("ranks", CASES)
def test_a_fit_measures_the_norms_of_a_single_device(ranks: int, tmp_path: Path):
    call_on_ranks(ranks, measure_on_rank, ranks, get_free_port(), tmp_path)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    assert all(result == results[0] for result in results)
    expected_norms = reference_norms(FitCase(), ranks=ranks // 2)
    assert len(results[0]["norms"]) == len(expected_norms)
    for norms, expected in zip(results[0]["norms"], expected_norms, strict=True):
        assert norms == pytest.approx(expected, rel=1e-5)
    if ranks == 2:  # one data-parallel rank
        expected_updates = read_history(fit_with_monitor(FitCase()))["updates"]
        for updates, expected in zip(results[0]["updates"], expected_updates, strict=True):
            assert updates.keys() == expected.keys()
            for layer, ratio in updates.items():
                assert ratio == pytest.approx(expected[layer], rel=1e-4), layer


def check_placements(rank: int, port: int) -> None:
    join_ranks(rank, 4, port)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    full = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))

    def distribute(value: torch.Tensor, place: Any, *placements: Any) -> DTensor:
        return distribute_tensor(value, place, placements, src_data_rank=None)

    tensors = [
        full,
        distribute(2 * full, mesh["data_parallel"], Shard(0)),
        distribute(3 * full, mesh["tensor_parallel"], Shard(1)),
        distribute(4 * full, mesh["tensor_parallel"], Replicate()),
        distribute(5 * full, mesh, Shard(0), Shard(1)),
        distribute(6 * full, mesh, Replicate(), Shard(0)),
        DTensor.from_local(7 * full / 2, mesh["tensor_parallel"], [Partial()]),
        distribute(8 * full[:1], mesh["data_parallel"], Shard(0)),  # empty on a rank
    ]
    expected = torch.cat([factor * full.flatten() for factor in range(1, 8)] + [8 * full[0]])
    assert GradientNorms(tensors).total == pytest.approx(float(expected.norm()), rel=1e-5)
    assert float(largest_entry(tensors)) == pytest.approx(float(expected.abs().max()), rel=1e-5)
    dist.destroy_process_group()


def test_the_norm_of_tensors_with_mixed_placements_is_that_of_the_whole_tensors():
    call_on_ranks(4, check_placements, get_free_port())

"""What of a machine each of its workers has."""

import os

import pytest

from stormproof_train.search.local_workers import build_worker_environment

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("workers", "gpus", "visible", "expected"),
    [
        (2, 0, None, [None, None]),
        (2, 2, None, ["0", "1"]),
        (2, 4, None, ["0,2", "1,3"]),
        (3, 2, None, ["0", "1", "0"]),
        (2, 2, "5,7", ["5", "7"]),
        (1, 3, None, ["0,1,2"]),
    ],
)
def test_gpus_are_shared_out_in_turn(workers: int, gpus: int, visible: str | None, expected: list[str | None]):
    environ = {"OMP_NUM_THREADS": "1"} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    shares = [build_worker_environment(index, workers, environ, gpus) for index in range(workers)]
    assert [worker_share.get("CUDA_VISIBLE_DEVICES") for worker_share in shares] == expected
    assert not any("OMP_NUM_THREADS" in worker_share for worker_share in shares), "what is set already stays"


@pytest.mark.parametrize("workers", [1, 2, CORES + 1])
def test_each_has_as_many_cores_as_any_and_one_at_least(workers: int):
    shares = [build_worker_environment(index, workers, {}, num_gpus=0) for index in range(workers)]
    assert shares == [{"OMP_NUM_THREADS": str(max(1, CORES // workers))}] * workers

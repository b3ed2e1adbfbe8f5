import pytest

from stormproof.distributed.rank import global_rank, is_rank_zero, is_started_by_rank_zero

LAUNCHERS = {
    "none": ({}, 0),
    "torchrun": ({"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}, 3),
    "torchrun inside a Slurm step": ({"RANK": "5", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "train"}, 5),
    "srun": ({"SLURM_PROCID": "7", "SLURM_LOCALID": "3", "SLURM_JOB_NAME": "train"}, 7),
    "srun without a job name": ({"SLURM_PROCID": "2"}, 2),
    "salloc": ({"SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"}, 0),
    "Lightning inside salloc": ({"SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1"}, 1),
    "Lightning, first of a node": ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, 0),
    "Lightning, second of a node": ({"LOCAL_RANK": "1"}, 1),
    "Lightning, another node": ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 1),
}


@pytest.mark.parametrize(("environ", "rank"), LAUNCHERS.values(), ids=LAUNCHERS.keys())
def test_the_rank_is_what_the_launcher_set(environ: dict[str, str], rank: int):
    assert global_rank(environ) == rank


@pytest.mark.parametrize(("environ", "rank"), LAUNCHERS.values(), ids=LAUNCHERS.keys())
def test_only_one_process_is_rank_zero(environ: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is (rank == 0)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_follows_rank_zero_is_a_further_rank_that_lightning_started_on_its_node(launcher: str):
    followers = {"Lightning inside salloc", "Lightning, second of a node"}
    assert is_started_by_rank_zero(LAUNCHERS[launcher][0]) is (launcher in followers)

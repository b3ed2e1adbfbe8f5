"""A rank of a gloo job ends by itself, and soon, when it has ended."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stormproof import CheckpointRecovery, DeadNeuronDetector, DivergenceGuard, GradientNormMonitor, Preemption
from tests.support.recovery_fits import fit_with_recovery
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = LIGHTNING_WARNING_FILTERS

PROGRAM = """
import atexit, sys, torch
from torch import distributed
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit

atexit.register(lambda: print("there" if distributed.is_initialized() else "gone"))  # called last
destroy_gloo_before_exit()
destroy_gloo_before_exit()
if {joins}:
    distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
{end}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("joins", "end", "code"),
    [
        (True, "distributed.all_reduce(torch.ones(3))", 0),
        (True, "raise SystemExit(75)", 75),
        (True, "raise RuntimeError('mine')", 1),
        (False, "", 0),
    ],
    ids=["at the end", "told to leave", "by an error", "without a group"],
)
def test_the_group_is_left_before_python_ends(joins: bool, end: str, code: int):
    program = PROGRAM.format(joins=joins, end=end)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code, result.stderr
    assert result.stdout.split() == ["gone"]


RANK = """
import sys, time, torch
from torch import distributed
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit

rank, store = int(sys.argv[1]), sys.argv[2]
destroy_gloo_before_exit()
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
distributed.all_reduce(torch.ones(3))
if rank == 1:
    pending = distributed.all_reduce(torch.ones(3), async_op=True)
    print("leaves", flush=True)
    raise RuntimeError("mine")
time.sleep(100)
"""


@pytest.mark.slow
def test_a_rank_that_fails_does_not_wait_for_one_that_never_joins(tmp_path: Path):
    ranks: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        assert ranks[1].stdout.readline() == "leaves\n"
        start = time.monotonic()
        assert ranks[1].wait(timeout=60) == 1
        assert time.monotonic() - start < 30
        assert ranks[0].poll() is None
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.parametrize(
    ("module", "callback"),
    [
        ("checkpoint_recovery", None),
        ("preemption", Preemption()),
        ("dead_neuron_detector", DeadNeuronDetector()),
        ("divergence_guard", DivergenceGuard()),
        ("gradient_norm_monitor", GradientNormMonitor()),  # of what is sharded
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_whatever_talks_among_ranks_asks_for_it(
    module: str, callback: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls: list[str] = []
    monkeypatch.setattr(f"stormproof.{module}.destroy_gloo_before_exit", lambda: calls.append(module))
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=100), *([] if callback is None else [callback]))
    assert calls

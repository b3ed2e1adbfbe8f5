"""A rank of a gloo job ends by itself, after all was done."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, torch
from torch import distributed
from stormproof.parting import part_before_exit

atexit.register(lambda: print("there" if distributed.is_initialized() else "gone"))  # called last
part_before_exit()
part_before_exit()
distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1) if {joins} else None
{end}
"""


@pytest.mark.parametrize(
    ("joins", "end", "group", "code"),
    [
        (True, "distributed.all_reduce(torch.ones(3))", "gone", 0),
        (True, "raise SystemExit(75)", "gone", 75),
        (True, "raise RuntimeError('mine')", "there", 1),
        (False, "", "gone", 0),
    ],
    ids=["at the end", "told to leave", "by an error", "without a group"],
)
def test_the_group_is_left_before_python_ends_unless_by_an_error(joins: bool, end: str, group: str, code: int):
    program = PROGRAM.format(joins=joins, end=end)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.split() == [group]

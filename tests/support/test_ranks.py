"""A failure of one rank fails the test that runs it."""

from pathlib import Path

import pytest

from tests.support.ranks import run_on_two_ranks

pytestmark = pytest.mark.slow

WAIT = "import os, sys, time\nif os.environ['RANK'] == '0':\n    time.sleep(300)\n"
FAILURES = {
    "an exception": ("raise ValueError('wrong')", "ValueError: wrong"),
    "an exit code": ("sys.exit(3)", "exit code 3"),
    "a signal": ("os.abort()", "SIGABRT"),
}


@pytest.mark.parametrize(("statement", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failed_rank_is_an_error_and_ends_the_other(statement: str, message: str, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(f"{WAIT}print('before the end', file=sys.stderr)\n{statement}\n")
    with pytest.raises(Exception, match=message) as excinfo:
        run_on_two_ranks(str(script))
    assert any("before the end" in note for note in excinfo.value.__notes__)


def test_a_rank_that_does_not_finish_is_killed(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(WAIT)
    with pytest.raises(TimeoutError, match=r"did not finish on all ranks within 2 s"):
        run_on_two_ranks(str(script), timeout=2)


def test_the_output_of_both_ranks_is_returned_in_order(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'], sys.argv[1], os.getcwd())\n")
    assert run_on_two_ranks(str(script), "word", cwd=tmp_path) == f"0 2 word {tmp_path}\n1 2 word {tmp_path}\n"

"""Invalid options of ``stormproof certify`` are refused in one sentence before the command starts."""

import pytest

from stormproof.cli import main

INVALID = {
    (): "The command is missing.",
    ("--max-faults", "0"): "--max-faults must be at least 1, got 0.",
    ("--faults", "kill,fire"): "--faults must list kinds among",
    ("--budget", "soon"): "--budget must be a time such as 90s, 10m or 2h, got soon.",
    ("--resume-command", "python 'train.py"): "--resume-command cannot be split into words",
    ("--json", "missing/result.json"): "--json must be a file in an existing folder, got missing/result.json.",
    ("--junit", "missing/junit.xml"): "--junit must be a file in an existing folder, got missing/junit.xml.",
}


@pytest.mark.parametrize("options", INVALID, ids=lambda options: " ".join(options) or "no command")
def test_an_invalid_option_is_refused(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    command = ("--", "false") if options else ()
    assert main.main(["certify", *options, *command]) == 2
    assert INVALID[options] in capsys.readouterr().err

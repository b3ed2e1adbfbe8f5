"""The pytest fixture ``certify``, which tests whether a command resumes exactly.

    def test_resume(certify):
        certify("python train.py --resume auto", budget=120).assert_exact()

Modules of the certification are imported when the fixture is used, so that the plugin does not slow other tests down.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stormproof.replay.certification import Certification


@dataclass(frozen=True, slots=True)
class Certified:
    """A command and its certification.

    Attributes:
        certification: Results of all faults.
        text: The report as text.
        report: The report as an HTML file.
    """

    certification: Certification
    text: str
    report: Path

    def assert_exact(self) -> None:
        """Fails the test if the command did not resume exactly after all faults.

        Raises:
            AssertionError: If a fault has another verdict. The message is the report.
        """
        __tracebackhide__ = True
        if not self.certification.is_exact:
            raise AssertionError(self.text)


@pytest.fixture
def certify(tmp_path: Path) -> Callable[..., Certified]:
    """Returns a function that certifies a command.

    Its arguments are the command, the kinds of ``faults``, and the fields of ``stormproof.replay.settings.Options``.
    The working folder is the current one, and the output folder is temporary.
    """

    def run(command: str | Sequence[str], faults: Iterable[str] = (), **options: Any) -> Certified:
        from stormproof.replay.certify import certify as certify_command  # noqa: PLC0415
        from stormproof.replay.faults.fault import FaultKind  # noqa: PLC0415
        from stormproof.replay.reports.write import write_reports  # noqa: PLC0415
        from stormproof.replay.settings import Options  # noqa: PLC0415

        words = {name: options.pop(name, ()) for name in ("resume_command",)} | {"command": command}
        arguments = {name: tuple(shlex.split(text) if isinstance(text, str) else text) for name, text in words.items()}
        output = Path(options.pop("output", tmp_path / "certify"))
        kinds = tuple(map(FaultKind, faults)) or tuple(FaultKind)
        certification = certify_command(Options(**arguments, output=output, kinds=kinds, **options))
        return Certified(certification, write_reports(certification, output), output / "report.html")

    return run

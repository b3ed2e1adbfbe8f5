"""Runs the tests of Lightning itself with Stormproof's callbacks in every Trainer.

    pip install -e ".[dev]"
    python scripts/lightning_suite.py [--callbacks monitors recovery] [--checkout DIR] [TEST ...]

Fetches the tests of the installed version of pytorch-lightning, or of the nearest version that has a tag, and runs a
selection of them with each set of callbacks:

- ``monitors``: GradientNormMonitor, DeadNeuronDetector, StepTimer and TrainingHealth,
- ``recovery``: Preemption, HangWatch and CheckpointRecovery, which writes to a temporary folder.

A test that fails runs again without the callbacks. If it fails again, it is ignored. If it passes, it runs once more
with the callbacks, because tests with time limits fail on a loaded machine. The tests that fail twice are compared with
``lightning_suite_expected.toml``, which contains the reason for each.

A module that requires a missing package counts as one test that fails without the callbacks. The log names it.
``pip install "pytorch-lightning[extra]"`` installs most of these packages.

Exits with 1 if another test fails, or if one of the expected failures passes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.version import Version

URL = "https://github.com/Lightning-AI/pytorch-lightning"
ROOT = Path(__file__).resolve().parents[1]
EXPECTED = Path(__file__).with_name("lightning_suite_expected.toml")
SELECTION = (
    "loops",
    "tuner",
    "trainer/test_trainer.py",
    "trainer/optimization",
    "trainer/flags",
    "trainer/logging_",
    "callbacks",
    "models/test_hooks.py",
    "models/test_restore.py",
    "checkpointing/test_checkpoint_callback_frequency.py",
    "checkpointing/test_model_checkpoint.py",
    "checkpointing/test_trainer_checkpoint.py",
)
"""Paths relative to ``tests/tests_pytorch``. Each runs in a separate pytest process."""
SECONDS = 300
"""Time limit of one test. Some tests start two processes, which takes a minute on a loaded machine."""


@dataclass(frozen=True)
class Outcome:
    """Names of the tests of a run.

    Attributes:
        passed: All phases passed.
        failed: A phase failed: set-up, call or teardown.
        skipped: Skipped, or expected by Lightning to fail.
    """

    passed: frozenset[str]
    failed: frozenset[str]
    skipped: frozenset[str]

    @classmethod
    def read(cls, lines: Iterable[str]) -> Outcome:
        """Reads the lines of ``lightning_suite_plugin.py``.

        Example:
            >>> Outcome.read(["passed setup a", "passed call a", "failed teardown a", "skipped setup b"])
            Outcome(passed=frozenset(), failed=frozenset({'a'}), skipped=frozenset({'b'}))
        """
        outcomes: dict[str, set[str]] = {}
        for line in lines:
            outcome, _, test = line.rstrip("\n").split(" ", 2)
            outcomes.setdefault(test, set()).add(outcome)
        failed = frozenset(test for test, results in outcomes.items() if "failed" in results)
        skipped = frozenset(test for test, results in outcomes.items() if "skipped" in results) - failed
        return cls(frozenset(outcomes) - failed - skipped, failed, skipped)

    def __or__(self, other: Outcome) -> Outcome:
        return Outcome(self.passed | other.passed, self.failed | other.failed, self.skipped | other.skipped)


def nearest_tag(tags: Iterable[str], installed_version: str) -> str:
    """Returns the tag of ``installed_version``, otherwise the last tag before it or the first tag after it.

    Example:
        >>> nearest_tag(["2.6.4", "2.6.5", "2.7.0", "app/0.6"], "2.6.6")
        '2.6.5'
        >>> nearest_tag(["2.6.5", "2.6.6"], "2.6.6")
        '2.6.6'
    """
    versions = {Version(tag): tag for tag in tags if re.fullmatch(r"\d+(\.\d+)*", tag)}
    before = [candidate for candidate in versions if candidate <= Version(installed_version)]
    return versions[max(before) if before else min(versions)]


def fetch(folder: Path) -> Path:
    """Clones the tests of the installed version into ``folder`` and returns the checkout."""
    installed = version("pytorch-lightning")
    listed = _output(["git", "ls-remote", "--tags", "--refs", URL])
    tag = nearest_tag((line.rpartition("refs/tags/")[2] for line in listed.splitlines()), installed)
    checkout = folder / "lightning"
    clone = ["git", "clone", "--quiet", "--depth=1", "--filter=blob:none", "--sparse", "--branch", tag, URL]
    _output([*clone, str(checkout)])
    _output(["git", "-C", str(checkout), "sparse-checkout", "set", "tests"])
    print(f"pytorch-lightning {installed} is installed; its tests are those of the tag {tag}", flush=True)
    return checkout


def prepare(checkout: Path, folder: Path) -> Path:
    """Copies the tests into ``folder``, for the package ``pytorch_lightning`` as Lightning's CI does; returns them."""
    copy = folder / "suite"
    shutil.copytree(checkout / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(checkout / "pyproject.toml", copy)
    for file in (copy / "tests" / "tests_pytorch").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        text = text.replace("lightning.pytorch", "pytorch_lightning").replace("lightning.fabric", "lightning_fabric")
        file.write_text(text, encoding="utf-8")
    return copy / "tests" / "tests_pytorch"


def run(suite: Path, tests: Sequence[str], callbacks: str, log: Path) -> Outcome:
    """Runs ``tests`` with a set of callbacks. Appends what pytest prints to ``log``."""
    outcomes = log.with_suffix(".outcomes")
    outcomes.write_text("")
    paths = os.pathsep.join(map(str, (ROOT / "callbacks", ROOT / "scripts", suite.parent)))
    environment = os.environ | {
        "STORMPROOF_CALLBACKS": callbacks, "STORMPROOF_OUTCOMES": str(outcomes), "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "pytest", "-p", "lightning_suite_plugin", "-p", "no:randomly", "-p", "no:cacheprovider",
        "-p", "no:xdist", "-c", str(suite.parents[1] / "pyproject.toml"), f"--rootdir={suite}",
        "--continue-on-collection-errors", "--quiet", "--tb=short",
        "--color=no", f"--timeout={SECONDS}", *tests,
    ]  # fmt: skip
    with log.open("a") as file:
        result = subprocess.run(command, cwd=suite, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if result.returncode not in {0, 1}:
        sys.exit(f"pytest exited with {result.returncode} for {' '.join(tests[:3])}. See {log}.")
    return Outcome.read(outcomes.read_text().splitlines())


def failures(suite: Path, tests: Sequence[str], callbacks: str, log: Path) -> tuple[Outcome, set[str]]:
    """Runs ``tests``, each path in a separate process.

    Returns:
        Outcome of the first run, and the tests that failed twice with the callbacks and passed without them.
    """
    outcome = Outcome(frozenset(), frozenset(), frozenset())
    failed: set[str] = set()
    for path in tests:
        with_them = run(suite, [path], callbacks, log)
        outcome |= with_them
        suspects = sorted(with_them.failed)
        if suspects:
            suspects = sorted(run(suite, suspects, "none", log).passed)
        if suspects:
            failed |= run(suite, suspects, callbacks, log).failed
        print(f"{callbacks}, {path}: {len(with_them.passed)} passed, {len(with_them.failed)} failed", flush=True)
    return outcome, failed


def read_expected(callbacks: str) -> dict[str, str]:
    """Returns the reason for each expected failure, by test."""
    groups = tomllib.loads(EXPECTED.read_text())["expected"]
    return {test: group["reason"] for group in groups if callbacks in group["callbacks"] for test in group["tests"]}


def report(callbacks: str, outcome: Outcome, failed: set[str], reasons: dict[str, str]) -> bool:
    """Prints how a run differs from what is expected, and returns whether it does."""
    unexpected = sorted(failed - reasons.keys())
    passing = sorted(reasons.keys() & outcome.passed)
    untouched = len(outcome.failed) - len(failed)
    print(
        f"{callbacks}: {len(outcome.passed)} passed, {len(outcome.skipped)} skipped, {len(outcome.failed)} failed. Of "
        f"these, {untouched} fail without the callbacks or pass when run again, {len(failed & reasons.keys())} are "
        f"expected, {len(unexpected)} are unexpected."
    )
    for test in unexpected:
        print(f"  unexpected failure: {test}")
    for test in passing:
        print(f"  expected to fail, but passes: {test} ({reasons[test]})")
    return bool(unexpected or passing)


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=SELECTION, help="paths below tests/tests_pytorch, or single tests")
    parser.add_argument("--callbacks", nargs="+", choices=["monitors", "recovery"], default=["monitors", "recovery"])
    parser.add_argument("--checkout", type=Path, help="checkout of Lightning's repository; fetched if left out")
    parser.add_argument("--log", type=Path, default=Path("lightning_suite.log"), help="file for what pytest prints")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        suite = prepare(options.checkout or fetch(folder), folder)
        log = options.log.absolute()
        log.write_text("")
        differs = [
            report(callback_set, *failures(suite, options.tests, callback_set, log), read_expected(callback_set))
            for callback_set in options.callbacks
        ]
    sys.exit(any(differs))


if __name__ == "__main__":
    main()

"""Configuration and fixtures for all tests and docstring examples."""

import gc
import os
import secrets
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

gc.disable()  # re-enabled after test collection; imports create little garbage
sys.dont_write_bytecode = False  # tests start hundreds of processes, which import the same modules
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide text that is never flushed
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run in parallel
for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_", "HYDRA_"))]:
    del os.environ[name]
os.environ["NETRC"] = os.devnull  # hides the W&B API key of the current user

import torch  # noqa: E402 (after the environment is set)

from tests.support import forked_command, object_stores  # noqa: E402 (after the environment is set)
from tests.support.time_limit import Stopwatch, slowness  # noqa: E402 (after the environment is set)

collect_ignore = ["callbacks/stormproof/replay/recorder/bootstrap"]  # `sitecustomize` would replace the system's module

LONG = {"slow", "drill", "cluster", "browser", "third_party"}
"""Markers of tests that may take longer than ``--max-seconds``."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Seeds torch before every test, so that results do not depend on test order."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _doctest_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a docstring example in an empty folder."""
    if isinstance(request.node, pytest.DoctestItem):
        folder = request.getfixturevalue("tmp_path")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.fixture
def command(tmp_path: Path) -> forked_command.Command:
    """Runs ``python train.py <arguments>`` in an empty folder. Logger and report are off unless arguments set them."""

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
        given_keys = {argument.partition("=")[0] for argument in arguments}
        defaults = [word for word in ("logger=none", "report=false") if word.partition("=")[0] not in given_keys]
        return forked_command.run(
            [*arguments, *defaults], cwd=tmp_path, env=os.environ if env is None else env, timeout=200
        )

    return run


@pytest.fixture(scope="session")
def s3_server() -> Generator[object_stores.S3Server, None, None]:
    """Runs an S3 server in another process."""
    with object_stores.run_s3_server() as server:
        yield server


@pytest.fixture
def s3_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty prefix, with the environment that reaches it.

    The prefix is in a new bucket of the S3 server, or in the object store that the variable
    ``STORMPROOF_TEST_STORE`` names, such as ``az://container``.
    """
    if "STORMPROOF_TEST_STORE" in os.environ:
        if "s3_server" in request.fixturenames:
            pytest.skip("tests the server of the fixture s3_server")
        return f"{os.environ['STORMPROOF_TEST_STORE']}/{secrets.token_hex(8)}"
    s3_server: object_stores.S3Server = request.getfixturevalue("s3_server")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.make_bucket()}/run"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--max-seconds",
        type=float,
        default=3.0,
        help="fail default tests that take longer (default: 3; scaled on slow machines)",
    )


SLOW_EXAMPLES = {"stormproof_train.compression.deployment.export.export_onnx"}
"""Docstring examples that take longer than ``--max-seconds``."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.name in SLOW_EXAMPLES:
            item.add_marker("slow")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Enables garbage collection for objects created from now on, and preloads the fork server if a test needs it."""
    gc.enable()
    gc.freeze()
    if any(map(_needs_fork_server, session.items)):
        forked_command.start_fork_server()


def _needs_fork_server(item: pytest.Item) -> bool:
    """Returns whether a test runs commands. A product test may otherwise start the fork server without our modules."""
    return "command" in getattr(item, "fixturenames", ()) or hasattr(getattr(item, "module", None), "forked_command")


STOPWATCH = pytest.StashKey[Stopwatch]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if "command" in getattr(item, "fixturenames", ()):
        forked_command.wait_for_fork_server()  # not the time of the first test that needs it
    item.stash[STOPWATCH] = Stopwatch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a default test whose setup and call take longer than ``--max-seconds``, scaled by the machine's speed."""
    report = yield
    limit = item.config.getoption("max_seconds") * slowness()
    if call.when == "call" and report.passed and not any(map(item.get_closest_marker, LONG)):
        seconds = item.stash[STOPWATCH].seconds()
        if seconds > limit:
            report.outcome = "failed"
            report.longrepr = (
                f"{item.nodeid} took {seconds:.1f} s, more than {limit:.1f} s: shorten it or mark it `slow`."
            )
    return report

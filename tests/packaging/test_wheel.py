"""The wheel, in a fresh virtual environment, away from the checkout."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.forked_command import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it, and nothing else."""
    return _environment(wheel, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it, that borrows the other packages of this one."""
    folder = _environment(wheel, tmp_path_factory.mktemp("venv"))
    (site,) = folder.glob("lib/python*/site-packages")
    # they come after its own; the .pth files among them, such as that of an editable install, are not read
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    return folder


def _environment(wheel: Path, folder: Path) -> Path:
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--no-deps", "--quiet"]
    result = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def _run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        arguments, cwd=cwd, capture_output=True, text=True, timeout=200, check=False, env={**clean, **environment}
    )


def test_the_wheel_carries_every_config_and_module_and_nothing_else(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    configs = {f"stormproof_train/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    roots = (
        (ROOT / "src", "*.py"),
        (ROOT / "callbacks", "*.py"),
        (ROOT / "src", "py.typed"),
        (ROOT / "callbacks", "py.typed"),
        (ROOT / "callbacks", "*.css"),
        (ROOT / "src", "*.csv"),
        (ROOT / "src", "*.pyi"),
        *((ROOT / "src", f"*.{kind}") for kind in ("html", "css", "js")),
    )
    modules = {str(path.relative_to(root)) for root, pattern in roots for path in root.rglob(pattern)}
    assert names == configs | modules


def test_the_installed_command_trains_in_any_folder(installed: Path, tmp_path: Path):
    result = _run(
        str(installed / "bin/stormproof-train"), "train", "activation=elu", "logger=none", "trainer.max_epochs=1",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["test"]["accuracy"] > 0.5
    where = _run(
        str(installed / "bin/python"), "-c", "import stormproof_train; print(stormproof_train.__file__)", cwd=tmp_path
    )
    assert where.stdout.startswith(str(installed))


def test_the_plugin_imports_with_torch_and_lightning_alone(installed: Path, tmp_path: Path):
    block = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'wandb', 'sklearn', 'typeguard'):\n"
        "    sys.modules[name] = None\n"
        "import pkgutil, importlib, stormproof\n"
        "for module in pkgutil.walk_packages(stormproof.__path__, 'stormproof.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(stormproof.StepTimer)\n"
    )
    result = _run(str(installed / "bin/python"), "-c", block, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_without_the_extra_the_command_says_what_to_install(bare: Path, tmp_path: Path):
    result = _run(str(bare / "bin/stormproof-train"), "activation=elu", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert (
        result.stderr
        == "stormproof: training needs hydra, which is not installed. Run: pip install 'stormproof[train]'\n"
    )

"""Checks the bank of training scripts without `stormproof certify`.

For each script in ``index.toml``:

1. Two uninterrupted runs must write the same final state.
2. A third run is killed with SIGKILL after a third and after two thirds of its optimizer steps and restarted by the
   same command. Scripts with the component ``exact`` must write the same final state. All others must not: the entry
   that ``evidence`` names must differ.
3. The script with the replacements in ``fix`` must resume exactly under the same kills. This proves that the script
   has only the fault that the index names.

Global random states at exit are compared too, where both uninterrupted runs agree on them.

    python scripts/benchmarks/certify_bank/check.py                      # all scripts
    python scripts/benchmarks/certify_bank/check.py images/digits_mlp.py # some scripts
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BANK = Path(__file__).resolve().parent
TIMEOUT = 240
"""Seconds after which a run counts as hung."""


@dataclass(frozen=True)
class Script:
    """One entry of the index.

    Attributes:
        path: File of the script, relative to the folder of the bank.
        framework: ``plain``, ``lightning``, ``trainer`` or ``accelerate``.
        component: Component that the script does not restore, or ``exact``.
        part: ``development``, ``blind`` or ``held_out``.
        wrong: One sentence about the fault.
        output: File with the final state, relative to the working folder of the run.
        evidence: Key in the output that differs after a kill. Empty for exact scripts.
        variable: Variable that contains the component. `certify_bank_run.py` accepts its name, too.
        fix: Pairs of text to find and its replacement. They remove the fault.
    """

    path: str
    framework: str
    component: str
    part: str
    wrong: str
    output: str
    evidence: str = ""
    variable: str = ""
    fix: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Ending:
    """End of a run.

    Attributes:
        state: Loaded output file.
        report: Number of optimizer steps and hashes of the random states in the last process.
        seconds: CPU seconds of the last process, without imports of frameworks.
    """

    state: Any
    report: dict[str, Any]
    seconds: float


def read_index() -> list[Script]:
    """Reads the index of the bank."""
    return [Script(**entry) for entry in tomllib.loads((BANK / "index.toml").read_text())["script"]]


def run_child(script: str, kill_at: int, report: str) -> None:
    """Runs a script as ``__main__`` and kills the process after ``kill_at`` optimizer steps (0: never)."""
    import random

    import numpy as np
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    # a new process starts from other random states than its parent
    random.seed()
    np.random.seed()  # noqa: NPY002
    steps = 0
    owner = os.getpid()

    def count_step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at and os.getpid() == owner:
            os.kill(owner, signal.SIGKILL)

    register_optimizer_step_post_hook(count_step)
    sys.argv = [script]
    sys.path[0] = str(Path(script).parent)
    started = time.process_time()
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code not in {None, 0}:
            raise
    numpy_state = np.random.get_state()  # noqa: NPY002
    states = {
        "python": repr(random.getstate()).encode(),
        "numpy": repr([list(part) if isinstance(part, np.ndarray) else part for part in numpy_state]).encode(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    hashes = {name: hashlib.sha256(state).hexdigest() for name, state in states.items()}
    Path(report).write_text(json.dumps({"steps": steps, "seconds": time.process_time() - started, "random": hashes}))


def start(script: Path, folder: Path, kill_at: int) -> int:
    """Runs a script in a forked process and returns its exit code. The fork saves the time of the imports."""
    log = folder.with_suffix(".log").open("a")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            run_child(str(script), kill_at, str(folder.with_suffix(".json")))
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    log.close()
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise RuntimeError(f"no exit after {TIMEOUT} s, see {folder.with_suffix('.log')}")


def preload(frameworks: set[str]) -> None:
    """Imports the frameworks, so that forked processes need not."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    sys.dont_write_bytecode = True
    import torch

    torch.set_num_threads(1)
    if "lightning" in frameworks:
        importlib.import_module("pytorch_lightning")
    if "trainer" in frameworks:
        importlib.import_module("transformers.trainer")
    if "accelerate" in frameworks:
        importlib.import_module("accelerate")


def run(script: Path, output: str, folder: Path, kills: tuple[int, ...] = ()) -> Ending:
    """Runs a script to its end, with one kill after each number of optimizer steps in ``kills``.

    Raises:
        RuntimeError: If a process ends with another exit code, or the output is missing.
    """
    import torch

    folder.mkdir(parents=True)
    for kill_at in kills:
        code = start(script, folder, kill_at)
        if code not in {-signal.SIGKILL, 0}:
            raise RuntimeError(f"exit code {code}, see {folder.with_suffix('.log')}")
    code = start(script, folder, kill_at=0)
    if code != 0:
        raise RuntimeError(f"exit code {code}, see {folder.with_suffix('.log')}")
    report = json.loads(folder.with_suffix(".json").read_text())
    return Ending(torch.load(folder / output, weights_only=False), report, report["seconds"])


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Returns the paths of the entries that are not bit-identical."""
    import numpy as np
    import torch

    if type(first) is not type(second):
        return [name]
    if isinstance(first, dict):
        keys = [*first, *(key for key in second if key not in first)]
        lost = [f"{name}.{key}" for key in keys if (key in first) != (key in second)]
        both = [key for key in keys if key in first and key in second]
        return lost + [path for key in both for path in differences(first[key], second[key], f"{name}.{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [name]
        return [
            path
            for index, pair in enumerate(zip(first, second, strict=True))
            for path in differences(*pair, f"{name}.{index}")
        ]
    if isinstance(first, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        same = same and first.contiguous().numpy().tobytes() == second.contiguous().numpy().tobytes()
    elif isinstance(first, np.ndarray):
        same = first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    else:
        same = repr(first) == repr(second)
    return [] if same else [name]


def random_differences(first: Ending, repeated: Ending, killed: Ending) -> list[str]:
    """Returns the global random states that a kill changes."""
    reports = [ending.report["random"] for ending in (first, repeated, killed)]
    return [name for name in reports[0] if reports[0][name] == reports[1][name] != reports[2][name]]


def fixed_copy(script: Script, folder: Path) -> Path:
    """Writes the script without its fault."""
    source = (BANK / script.path).read_text()
    for old, new in script.fix:
        if source.count(old) != 1:
            raise RuntimeError(f"fix: {old!r} occurs {source.count(old)} times")
        source = source.replace(old, new)
    path = folder / "fixed" / Path(script.path).name
    path.parent.mkdir(parents=True)
    path.write_text(source)
    return path


def check_fix(script: Script, scratch: Path) -> list[str]:
    """Returns the reasons why the fixed script does not resume exactly."""
    fixed = fixed_copy(script, scratch)
    first = run(fixed, script.output, scratch / "fixed_first")
    third = first.report["steps"] // 3
    killed = run(fixed, script.output, scratch / "fixed_killed", (third, third))
    changed = differences(first.state, killed.state)
    states = random_differences(first, first, killed)
    problems = [f"fixed script differs after kills in {', '.join(changed[:4])}"] if changed else []
    # an unseeded state differs in each process, whether it is used or not
    return problems + [f"fixed script changes the random state of {name}" for name in states if name == "torch"]


def check(script: Script, scratch: Path, with_fix: bool) -> tuple[list[str], str]:
    """Returns the problems of a script, and a note with its size."""
    source = BANK / script.path
    first = run(source, script.output, scratch / "first")
    repeated = run(source, script.output, scratch / "repeated")
    third = first.report["steps"] // 3
    killed = run(source, script.output, scratch / "killed", (third, third))
    problems = [f"not deterministic: {path}" for path in differences(first.state, repeated.state)[:4]]
    changed = differences(first.state, killed.state)
    states = random_differences(first, repeated, killed)
    if script.component == "exact":
        problems += [f"differs after kills: {path}" for path in changed[:4]]
        problems += [f"random state differs after kills: {name}" for name in states]
    else:
        if not any(path == f".{script.evidence}" or path.startswith(f".{script.evidence}.") for path in changed):
            problems.append(f"'{script.evidence}' is identical after kills; different: {changed[:4]}")
        if not script.fix:
            problems.append("has no fix")
        elif with_fix:
            problems += check_fix(script, scratch)
    note = f"{first.report['steps']} steps, {min(first.seconds, repeated.seconds):.1f} CPU s"
    if states:
        note += f", random states that differ: {', '.join(states)}"
    return problems, note


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the bank of training scripts.")
    parser.add_argument("scripts", nargs="*", help="paths in the index (default: all)")
    parser.add_argument("--no-fix", action="store_true", help="do not run the fixed scripts")
    parser.add_argument("--keep", type=Path, help="folder for runs and logs (default: temporary)")
    arguments = parser.parse_args()
    index = read_index()
    unknown = set(arguments.scripts) - {script.path for script in index}
    if unknown:
        parser.error(f"not in index.toml: {', '.join(sorted(unknown))}")
    chosen = [script for script in index if not arguments.scripts or script.path in arguments.scripts]
    preload({script.framework for script in chosen})
    failed = 0
    started = time.monotonic()
    for script in chosen:
        root = Path(tempfile.mkdtemp()) if arguments.keep is None else arguments.keep
        scratch = root / script.path.replace("/", "_").removesuffix(".py")
        shutil.rmtree(scratch, ignore_errors=True)
        began = time.monotonic()
        try:
            problems, note = check(script, scratch, with_fix=not arguments.no_fix)
        except (RuntimeError, OSError) as error:
            problems, note = [str(error)], ""
        if arguments.keep is None:
            shutil.rmtree(root)
        failed += bool(problems)
        verdict = "FAIL" if problems else "ok"
        print(
            f"{verdict:4} {script.path} {script.component} ({note}, check {time.monotonic() - began:.0f} s)", flush=True
        )
        for problem in problems:
            print(f"       {problem}", flush=True)
    print(f"{failed} failed, {time.monotonic() - started:.0f} s")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

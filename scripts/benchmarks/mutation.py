"""Measures the mutation score of the test suite, using the operators of Cosmic Ray.

    pip install -e ".[dev]" cosmic-ray==8.7.0
    python scripts/benchmarks/mutation.py record default       # Python 3.12 or later: which test executes which line
    python scripts/benchmarks/mutation.py record slow -m "slow and not drill"
    python scripts/benchmarks/mutation.py sample --count 204 --seed 1
    python scripts/benchmarks/mutation.py run default --option=--max-seconds=60
    python scripts/benchmarks/mutation.py run default slow --option=--max-seconds=60

A mutant has one changed operator, comparison, number, constant, condition, loop, decorator or exception. ``sample``
draws the same number of mutants from each area in ``AREAS``, at most one per source location, and none in type
annotations. ``run`` runs the tests that execute the mutated line, fastest first. For a line that is executed on import,
these are the tests that execute any line of its function or module. A mutant is killed if a test fails, the module
cannot be imported, a test times out (60 s) or the process runs for 180 s. It survives if no test fails within 120 s or
no test executes its line. Results are saved in ``--work``; an interrupted ``run`` resumes.

Why Cosmic Ray: it offers mutation as a function of source text. Mutants therefore run in forks of one process that has
imported torch, and tests can be selected per line. mutmut 3 selects tests per function.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

HERE = Path(__file__).resolve().parent
PLUGIN, APPLICATION = "callbacks/stormproof", "src/stormproof_train"
AREAS = {
    "checkpoint": [f"{PLUGIN}/checkpoint/*.py"],
    "resume": [f"{PLUGIN}/resume/*.py", f"{PLUGIN}/lightning/logged_metrics.py"],
    "data": [f"{PLUGIN}/data/*.py", f"{PLUGIN}/resumable_loader.py"],
    "gradients": [f"{PLUGIN}/gradients/*.py", f"{PLUGIN}/gradient_norm_monitor.py"],
    "units": [f"{PLUGIN}/units/*.py", f"{PLUGIN}/dead_neuron_detector.py"],
    "divergence": [f"{PLUGIN}/divergence/*.py", f"{PLUGIN}/divergence_guard.py"],
    "health": [f"{PLUGIN}/health/**/*.py", f"{PLUGIN}/training_health.py"],
    "hang": [f"{PLUGIN}/hang/*.py", f"{PLUGIN}/hang_watch.py", f"{PLUGIN}/long_waits.py"],
    "run folder": [f"{APPLICATION}/run/{name}.py" for name in ("folder", "resume", "crash_loop", "metrics_file",
                                                               "metrics_rows")],
    "identity": [f"{APPLICATION}/{name}.py" for name in ("config/identity", "config/redaction", "mapping_file")],
    "search queue": [f"{APPLICATION}/search/{name}.py" for name in ("work_queue", "pruner", "rungs", "trials", "folder",
                     "runner", "worker")],
    "statistics": [f"{APPLICATION}/{name}.py" for name in ("evaluation/intervals", "evaluation/comparison",
                   "evaluation/classification", "evaluation/regression", "search/seed_comparison", "report/comparison",
                   "report/times")],
}  # fmt: skip
SECONDS = 120.0
PRELOADED = (
    "torch", "torch.distributed", "pytorch_lightning", "torchmetrics", "torchvision", "hydra", "pandas", "sklearn",
    "scipy", "rich", "optuna", "wandb",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A mutation of one source file.

    Attributes:
        area: Key of ``AREAS``.
        path: Path of the module, relative to the repository.
        operator: Name of Cosmic Ray's operator.
        occurrence: Index among all locations in the module where the operator applies.
        line: Line number, from 1.
        column: Column, from 0.
    """

    area: str
    path: str
    operator: str
    occurrence: int
    line: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.column}:{self.operator}:{self.occurrence}"

    def apply(self, source: str) -> str:
        mutated = mutate_code(source, get_operator(f"core/{self.operator}")(), self.occurrence)
        assert mutated is not None, self
        return mutated


def record(tree: Path, work: Path, suite: str, marks: str | None) -> None:
    """Runs a suite and writes ``<suite>.json``: the tests that execute each line, and the duration of each test."""
    raw = work / f"{suite}.raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    starter = Path(sysconfig.get_paths()["purelib"], "executed_lines.pth")
    starter.write_text(f"import os, sys; 'EXECUTED_LINES' in os.environ and (sys.path.append({str(HERE)!r}), "
                       "__import__('executed_lines'))\n")  # fmt: skip
    environment = os.environ | {
        "EXECUTED_LINES": str(raw),
        "EXECUTED_LINES_ROOT": f"{tree}/",
        "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(tree / "callbacks"), str(HERE)]),
    }
    xml = work / f"{suite}.xml"
    command = [sys.executable, "-m", "pytest", "-p", "executed_lines", "-q", f"--junit-xml={xml}", "-o",
               "junit_duration_report=total"]  # fmt: skip
    try:
        subprocess.run([*command, *(["-m", marks] if marks else [])], cwd=tree, env=environment, check=False)
    finally:
        starter.unlink()
    tests: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    names: set[str] = set()
    for entry in _entries(raw):
        names.add(entry["test"])
        for path, lines in entry["lines"].items():
            for line in lines:
                tests[path][line].add(entry["test"])
    lines = {path: {line: sorted(of_line) for line, of_line in of_path.items()} for path, of_path in tests.items()}
    (work / f"{suite}.json").write_text(json.dumps({"seconds": _seconds(xml, names), "lines": lines}))
    shutil.rmtree(raw)


def _entries(raw: Path) -> Iterator[dict[str, Any]]:
    for file in raw.glob("*.jsonl"):
        for text in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a killed process can leave a truncated line
                entry = json.loads(text)
                if entry["test"]:
                    yield entry


def _seconds(xml: Path, names: set[str]) -> dict[str, float]:
    """Returns the seconds of each test that passed."""
    passed = {}
    by_key = {_key(name): name for name in names}
    for case in ET.parse(xml).iter("testcase"):
        name = by_key.get(f"{case.get('classname')}::{case.get('name')}")
        if name and all(child.tag not in {"failure", "error", "skipped"} for child in case):
            passed[name] = float(case.get("time", "0"))
    return passed


def _key(name: str) -> str:
    path, _, test = name.partition("::")
    return f"{path.removesuffix('.py').replace('/', '.')}::{test}"


def sample(tree: Path, work: Path, count: int, seed: int) -> None:
    """Draws a random sample of mutants and writes it to ``mutants.json``."""
    rng = random.Random(seed)
    chosen: list[Mutant] = []
    taken: set[Path] = set()
    for area, patterns in AREAS.items():
        paths = sorted({path.relative_to(tree) for pattern in patterns for path in tree.glob(pattern)} - taken)
        taken |= set(paths)
        places: dict[tuple[Any, ...], list[Mutant]] = defaultdict(list)
        for path in paths:
            for mutant in _make_mutants(area, tree, path):
                places[path, mutant.line, mutant.column, mutant.operator.partition("_")[0]].append(mutant)
        drawn = rng.sample(sorted(places), count // len(AREAS))
        chosen += [rng.choice(places[position]) for position in drawn]
    (work / "mutants.json").write_text(json.dumps([asdict(mutant) for mutant in chosen], indent=1))
    print(f"{len(chosen)} mutants of {len(AREAS)} areas")


def _make_mutants(area: str, tree: Path, path: Path) -> Iterator[Mutant]:
    source = (tree / path).read_text()
    annotations = list(_annotations(source))
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if name.startswith("core/Variable"):
            continue  # these operators require arguments
        operator = get_operator(name)()
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (line, column) in enumerate(positions):
            if not any(start <= (line, column) < end for start, end in annotations):
                yield Mutant(area, str(path), name.removeprefix("core/"), occurrence, line, column)


def _annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            annotation = getattr(node, field, None)
            if isinstance(annotation, ast.expr):
                assert annotation.end_lineno is not None
                assert annotation.end_col_offset is not None
                yield (annotation.lineno, annotation.col_offset), (annotation.end_lineno, annotation.end_col_offset)


def run(tree: Path, work: Path, suites: list[str], workers: int, options: list[str]) -> None:
    """Tests every mutant and writes ``results-<suites>.json``."""
    mutants = [Mutant(**entry) for entry in json.loads((work / "mutants.json").read_text())]
    tests, seconds = _tests_of(work, suites)
    file = work / f"results-{'+'.join(suites)}.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for name in PRELOADED:
        __import__(name)
    copies: Queue[Path] = Queue()
    for number in range(workers):
        copy = work / f"copy{number}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tree, copy, ignore=shutil.ignore_patterns("__pycache__", ".git", "runs", ".venv"))
        copies.put(copy)
    fastest = sorted(seconds, key=lambda test: seconds[test])[:200]
    unchanged = _outcome(copy, fastest, options)
    assert unchanged["outcome"] == "survived", f"tests fail without a mutant: {unchanged['by']}"
    clock = iter(range(10**9, 2 * 10**9))  # unique mtimes: Python validates .pyc files by source mtime

    def one(mutant: Mutant) -> None:
        if mutant.name in results:
            return
        copy = copies.get()
        target, started = copy / mutant.path, time.monotonic()
        original = target.read_text()
        of_line = tests.get(mutant.path, {})
        executing = {test for line in _lines_of_interest(original, mutant.line) for test in of_line.get(str(line), [])}
        chosen = sorted(executing & seconds.keys(), key=lambda test: (seconds[test], test))
        try:
            _write(target, mutant.apply(original), next(clock))
            outcome = (
                _outcome(copy, chosen, options)
                if chosen
                else {"outcome": "survived", "by": "no test executes the line"}
            )
        finally:
            _write(target, original, next(clock))
            copies.put(copy)
        results[mutant.name] = {**outcome, "area": mutant.area, "tests": len(chosen)}
        file.write_text(json.dumps(results, indent=1))
        took = time.monotonic() - started
        print(f"{took:5.1f} s  {outcome['outcome']:8}  {mutant.name}  {outcome['by']}", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, mutants))
    _print_scores(results)


def _lines_of_interest(source: str, line: int) -> range:
    """Returns the lines whose tests can kill a mutant of ``line``.

    These are the lines of its innermost statement, or of the head of a compound statement, since not every line is
    traced. Decorators, default values, and statements outside of functions are executed on import; the lines are those
    of the whole function or module.
    """
    statements = [  # outer statements first
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt) and line in _lines(node)
    ]
    functions = [node for node in statements if isinstance(node, ast.FunctionDef)]
    if not functions:
        return range(1, source.count("\n") + 1)
    if line < functions[-1].body[0].lineno:
        return _lines(functions[-1])
    body = getattr(statements[-1], "body", None)
    head = range(statements[-1].lineno, body[0].lineno) if body else _lines(statements[-1])
    return head if line in head else range(line, line + 1)


def _lines(node: ast.stmt) -> range:
    assert node.end_lineno is not None
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return range(min(part.lineno for part in (node, *decorators)), node.end_lineno + 1)


def _tests_of(work: Path, suites: list[str]) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    tests: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = {}
    for suite in suites:
        recorded = json.loads((work / f"{suite}.json").read_text())
        seconds |= recorded["seconds"]
        for path, lines in recorded["lines"].items():
            for line, names in lines.items():
                tests[path][line] += names
    return tests, seconds


def _write(file: Path, text: str, at: int) -> None:
    file.write_text(text)
    os.utime(file, (at, at))


def _outcome(copy: Path, tests: list[str], options: list[str]) -> dict[str, str]:
    """Runs the tests in a fork; returns the outcome and what killed the mutant."""
    log = copy.with_suffix(".log")
    pid = os.fork()
    if pid == 0:
        try:
            code = _run_tests(copy, tests, log, options)
        except BaseException:  # noqa: BLE001 (a mutant may raise anything, at import too)
            traceback.print_exc()
            code = 2
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + 1.5 * SECONDS
    while True:
        waited_pid, status = os.waitpid(pid, os.WNOHANG)
        if waited_pid:
            break
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"outcome": "killed", "by": "a test that hangs"}
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # child processes left by a failed test
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return {"outcome": "survived", "by": ""}
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"outcome": "killed", "by": (lines or [f"process exited with code {code}"])[0][:200]}


def _run_tests(copy: Path, tests: list[str], log: Path, options: list[str]) -> int:
    class Deadline:
        started = time.monotonic()

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
            if time.monotonic() - self.started > SECONDS:
                pytest.exit("out of time", returncode=0)

    os.setsid()
    os.chdir(copy)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    roots = [str(copy / "src"), str(copy / "callbacks")]
    sys.path[:] = [*roots, *(path for path in sys.path if path != str(HERE))]
    os.environ["PYTHONPATH"] = os.pathsep.join(roots)
    fixed = ["-n", "0", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-m", "", "--timeout=60"]
    fixed += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # pytest plugins are among the preloaded packages
    arguments = copy.with_suffix(".tests")
    arguments.write_text("\n".join(tests))
    return pytest.main([*fixed, *options, f"@{arguments}"], plugins=[Deadline()])


def _print_scores(results: dict[str, dict[str, Any]]) -> None:
    by_area: dict[str, list[bool]] = defaultdict(list)
    for result in results.values():
        by_area[result["area"]].append(result["outcome"] == "killed")
    for area, killed in by_area.items():
        print(f"{area:12} {sum(killed):3} of {len(killed):3}")
    every = [killed for of_area in by_area.values() for killed in of_area]
    print(f"{'all':12} {sum(every):3} of {len(every):3}  {100 * sum(every) / len(every):.1f}%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=HERE.parents[1], help="repository to mutate")
    parser.add_argument("--work", type=Path, default=Path("/tmp/mutation"), help="folder for recordings and results")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("suite")
    recording.add_argument("-m", dest="marks", help="marker expression, as for pytest -m")
    sampling = commands.add_parser("sample")
    sampling.add_argument("--count", type=int, default=204)
    sampling.add_argument("--seed", type=int, default=1)
    running = commands.add_parser("run")
    running.add_argument("suites", nargs="+")
    running.add_argument("--workers", type=int, default=2)
    running.add_argument("--option", action="append", default=[], dest="options", help="pytest option; repeatable")
    arguments = parser.parse_args()
    tree, work = arguments.tree.resolve(), arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if arguments.command == "record":
        record(tree, work, arguments.suite, arguments.marks)
    elif arguments.command == "sample":
        sample(tree, work, arguments.count, arguments.seed)
    else:
        run(tree, work, arguments.suites, arguments.workers, arguments.options)


if __name__ == "__main__":
    main()

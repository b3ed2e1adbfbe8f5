"""The command: finds the configs, reads the words after it, ends with a sentence and an exit code."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from stormproof.distributed.rank import follows_lightnings_rank_zero, global_rank
from stormproof.errors import PreemptedExit
from stormproof.signals.listener import ASKING
from stormproof.standard_output import pipe_is_broken, print_error, print_text
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.overrides import (
    overridden,
    plain,
    refuse_dashes,
    refuse_null,
    refuse_several,
    requeued_as_often_as_needed,
)
from stormproof_train.config.urls import refuse_urls
from stormproof_train.errors import ExitCode, PreemptedError, RunError, UserError
from stormproof_train.install_command import install
from stormproof_train.run import torchrun_agent

# What the extra [train] brings, by import name, but for what only one choice needs.
PACKAGES = (
    "hydra", "omegaconf", "torchmetrics", "sklearn", "wandb", "typeguard", "psutil", "filelock", "rich", "tqdm", "yaml",
    "jinja2", "pandas", "platformdirs", "vl_convert",
)  # fmt: skip
PACKAGES_OF_PREDICT = ("onnxruntime", "numpy", "pandas", "PIL", "rich")
COMMANDS = {
    "train": "trains and tests one network (the word may be left out); with -m, several",
    "report": "writes one HTML page on a run, or on several beside each other: report runs/<name> …",
    "search": "finds the best settings, by many workers: activation=relu,elu 'optimizer.lr=interval(0.001,0.1)'",
    "compress": "makes a run's network smaller and faster, at a price that is measured: run=runs/<name> budget=1pp",
    "evaluate": "tells what a run's weights are worth, on its data or others, and whether another's are better",
    "predict": "what a network made by compress says of files; needs no torch: predict model=… input=…",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the command's name; ``sys.argv`` by default.

    Returns:
        The exit code, as the README lists them.
    """
    _make_streams_robust()
    words = list(sys.argv[1:] if arguments is None else arguments)
    torchrun_agent.end_with_it()
    if follows_lightnings_rank_zero():
        # Ctrl-C reaches every process of a terminal. Rank 0 writes down why the run ended and takes the others along;
        # if one of them went first, Lightning would kill rank 0 before it could.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # rank 0 had blocked it: see run/sigint_mask.py
    debug = "debug=true" in (word.lower() for word in words)
    try:
        code = _dispatch(words)
        return ExitCode.BROKEN_PIPE if pipe_is_broken() else code
    except BrokenPipeError:  # `… | head`: the reader has left, and nobody is there to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except PreemptedExit:  # a further rank
        _hear_no_more()
        raise
    except RunError as error:
        if isinstance(error, PreemptedError):
            _hear_no_more()
        if debug:
            traceback.print_exc()
        return _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _end("stopped by Ctrl-C", ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (the outermost line: whatever comes is told, none is lost)
        return _exit_with_error(error, debug)


def _make_streams_robust() -> None:
    """Replaces missing streams by the null device and escapes characters that an encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (until Python exits)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(words: list[str]) -> int:
    command, words = _split(words)
    refuse_urls(words)
    if command != "report":  # whose words are paths
        _warn_of_repeated(words)
    if "--version" in words:
        print(version("stormproof"))
        return ExitCode.FINISHED
    if command == "predict":
        return _predict(words)
    _require_extra()
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own modules, as `python -m` would find them
    if command != "train":
        words = [word for word in words if not word.lower().startswith("debug=")]  # main looks at it
        runs = {"evaluate": _evaluate, "search": _search, "report": _report, "compress": _compress}
        return runs[command](words)
    refuse_several(words, _groups())
    refuse_null(words, _groups())
    refuse_dashes(words, _settings())
    words = plain(requeued_as_often_as_needed(words))
    if "--help" in words or "-h" in words:
        from stormproof_train.cli.help import print_help  # noqa: PLC0415

        print_help(conf_dir(), words)
        return ExitCode.FINISHED
    return _hydra(words)


def _warn_of_repeated(words: Sequence[str]) -> None:
    if not global_rank():
        for warning in overridden(words):
            print_text(f"warning: {warning}\n")


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The command, and the words after it."""
    if not words or words[0].startswith(("-", "~")) or "=" in words[0]:
        return "train", words
    if words[0] not in COMMANDS:
        raise UserError(f"there is no command {words[0]}; there is: {', '.join(COMMANDS)}")
    return words[0], words[1:]


def _predict(words: list[str]) -> int:
    """Where there may be neither torch nor Hydra."""
    if {"--help", "-h"} & set(words):
        from stormproof_train.cli.predict_help import USAGE  # noqa: PLC0415 (what one command needs)

        print(USAGE)
        return ExitCode.FINISHED
    for package in PACKAGES_OF_PREDICT:
        if find_spec(package) is None:
            raise UserError(f"predict needs {package}, which is not installed: {install('compress')}")
    from stormproof_train.cli import predict as predict_command  # noqa: PLC0415 (after the check)

    predict_command.run([word for word in words if not word.lower().startswith("debug=")])
    return ExitCode.FINISHED


def _evaluate(words: list[str]) -> int:
    from stormproof_train.cli import evaluate as evaluate_command  # noqa: PLC0415 (after _require_extra)

    if {"--help", "-h"} & set(words):
        print(evaluate_command.USAGE)
    else:
        evaluate_command.run(words, conf_dir())
    return ExitCode.FINISHED


def _report(words: list[str]) -> int:
    from stormproof_train.cli.report import report  # noqa: PLC0415 (after _require_extra)

    return report(words)


def _search(words: list[str]) -> int:
    if find_spec("optuna") is None:
        raise UserError(f"search needs optuna, which is not installed: {install('search')}")
    if {"--help", "-h"} & set(words):
        from stormproof_train.cli.search_help import print_help  # noqa: PLC0415 (after _require_extra)

        print_help(conf_dir(), words)
        return ExitCode.FINISHED
    from stormproof_train.cli import search as search_command  # noqa: PLC0415 (after _require_extra)

    search_command.run(words, conf_dir())
    return ExitCode.FINISHED


def _compress(words: list[str]) -> int:
    from stormproof_train.cli.compress_help import USAGE  # noqa: PLC0415 (after _require_extra, as what follows)

    if {"--help", "-h"} & set(words):
        print(USAGE)
        return ExitCode.FINISHED
    for package in ("torch_pruning", "onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise UserError(f"compress needs {package}, which is not installed: {install('compress')}")
    from stormproof_train.cli import compress as compress_command  # noqa: PLC0415 (after the check)

    compress_command.run(words, conf_dir())
    return ExitCode.FINISHED


def _hydra(words: list[str]) -> int:
    """Hands the words to Hydra, which composes the config and calls back: once, or once for each job of a sweep."""
    import hydra  # noqa: PLC0415
    from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415
    from hydra.types import RunMode  # noqa: PLC0415

    from stormproof_train.config.hydra_defaults import VERSION_BASE  # noqa: PLC0415 (it needs Hydra)

    unfinished: list[Exception] = []

    def job(cfg: Any) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            from stormproof_train.cli.sweep import run_job  # noqa: PLC0415

            run_job(cfg)
            return
        from stormproof_train.main import run  # noqa: PLC0415
        from stormproof_train.run.summary import print_summary  # noqa: PLC0415

        try:
            if cfg.tune:
                from stormproof_train.cli.tune import tune  # noqa: PLC0415 (few runs want it)

                tune(cfg)
                return
            summary = run(cfg, show_progress=sys.stderr.isatty())
            print_summary(summary, Path(cfg.runs_dir) / summary["name"])
        except Exception as error:  # noqa: BLE001 (raised again below: Hydra would add a line of its own to stderr)
            unfinished.append(error)

    _check_config_folders(words)
    if {"-m", "--multirun"} & set(words):
        from stormproof_train.cli.sweep_words import check_sweep  # noqa: PLC0415 (after _require_extra: it needs Hydra)

        check_sweep(words)
    # Hydra 1.4 instantiates its callbacks without a whitelist, and warns of ours
    warnings.filterwarnings("ignore", r"hydra\.utils\.instantiate\(\) resolved _target_='stormproof_train\.")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; main() tells
    sys.argv = [sys.argv[0], *words]
    hydra.main(config_path=str(conf_dir()), config_name="config", **VERSION_BASE)(job)()
    if unfinished:
        raise unfinished[0]
    return ExitCode.FINISHED


def _check_config_folders(words: list[str]) -> None:
    """Refuses config folders with YAML files whose aliases expand to too many values."""
    from stormproof_train.mapping_file import refuse_expanding  # noqa: PLC0415 (after _require_extra: it needs yaml)

    for name, following in pairwise([*words, ""]):
        option, _, value = name.partition("=")
        if option in {"--config-dir", "-cd"}:
            folder = Path(value or following)
            for files in (folder.glob("*.yaml"), *((folder / group).rglob("*.yaml") for group in _groups())):
                for file in files:
                    refuse_expanding(file)


def _groups() -> set[str]:
    return {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}


def _settings() -> set[str]:
    """Returns the groups, and the settings of no group."""
    import yaml  # noqa: PLC0415 (after _require_extra)

    return _groups() | yaml.safe_load((conf_dir() / "config.yaml").read_bytes()).keys()


def _hear_no_more() -> None:
    """Leaves with the code that it has: told again, Python would die of the signal in the second that its end takes."""
    for each in ASKING:
        signal.signal(each, signal.SIG_IGN)


def _require_extra() -> None:
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UserError(f"training needs {package}, which is not installed: {install('train')}")
    hydra = version("hydra-core")
    if sys.version_info >= (3, 14) and hydra.startswith("1.3."):
        raise UserError(f"Hydra {hydra} does not support Python 3.14. Run: pip install 'hydra-core>=1.4.0rc3,<1.5'")


def _exit_with_error(error: Exception, debug: bool) -> ExitCode:
    from stormproof_train.error_messages import is_killed_worker, sentence_for  # noqa: PLC0415 (they need Hydra)

    sentence, code = sentence_for(error)
    if debug or code is ExitCode.FAILED:
        traceback.print_exception(error)
    _end(sentence, code)
    if is_killed_worker(error):
        _exit_at_once(code)
    return code


def _exit_at_once(code: ExitCode) -> NoReturn:
    """Exits without Python's exit handlers.

    torch raises the error of a killed worker in its SIGCHLD handler, at any point of the main thread. A queue may be
    locked at that moment, and multiprocessing's exit handler would wait for the lock forever.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
    with suppress(OSError, ValueError):  # ValueError: a closed stream
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _end(sentence: str, code: ExitCode) -> ExitCode:
    rank = global_rank()
    print_text("")
    print_error(f"stormproof{f' (rank {rank})' if rank else ''}: {sentence}\n")
    if code in {ExitCode.DIVERGED, ExitCode.CRASH_LOOP} and not rank:
        torchrun_agent.stop_it()
    return code


if __name__ == "__main__":
    sys.exit(main())

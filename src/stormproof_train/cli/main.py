"""Runs a subcommand, prints one sentence about an error and returns the exit code."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from stormproof.distributed.rank import follows_lightnings_rank_zero, global_rank
from stormproof.errors import PreemptedExit
from stormproof.signals.listener import ASKING
from stormproof.standard_output import pipe_is_broken, print_error, print_text
from stormproof_train.cli.registry import DEFAULT, SUBCOMMANDS
from stormproof_train.config.overrides import overridden
from stormproof_train.config.urls import refuse_urls
from stormproof_train.errors import ExitCode, PreemptedError, RunError, UserError
from stormproof_train.install_command import install
from stormproof_train.run import torchrun_agent


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
    name, words = _split(words)
    subcommand = SUBCOMMANDS[name]
    refuse_urls(words)
    if subcommand.takes_settings:
        _warn_of_repeated(words)
    if "--version" in words:
        print(version("stormproof"))
        return ExitCode.FINISHED
    if "train" in subcommand.packages:
        _require(name, "train")
        _require_hydra_for_this_python()
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # a user's own modules, as `python -m` would find them
    if name != DEFAULT:
        words = [word for word in words if not word.lower().startswith("debug=")]  # main looks at it
    if {"--help", "-h"} & set(words):
        import_module(subcommand.help_module or subcommand.module).print_help(words)
        return ExitCode.FINISHED
    for extra in subcommand.packages:
        _require(name, extra)
    return import_module(subcommand.module).run(words)


def _warn_of_repeated(words: Sequence[str]) -> None:
    if not global_rank():
        for warning in overridden(words):
            print_text(f"warning: {warning}\n")


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The command, and the words after it."""
    if not words or words[0].startswith(("-", "~")) or "=" in words[0]:
        return DEFAULT, words
    if words[0] not in SUBCOMMANDS:
        raise UserError(f"there is no command {words[0]}; there is: {', '.join(SUBCOMMANDS)}")
    return words[0], words[1:]


def _hear_no_more() -> None:
    """Leaves with the code that it has: told again, Python would die of the signal in the second that its end takes."""
    for each in ASKING:
        signal.signal(each, signal.SIG_IGN)


def _require(name: str, extra: str) -> None:
    for package in SUBCOMMANDS[name].packages[extra]:
        if find_spec(package) is None:
            purpose = "training" if extra == "train" else name
            raise UserError(f"{purpose} needs {package}, which is not installed: {install(extra)}")


def _require_hydra_for_this_python() -> None:
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

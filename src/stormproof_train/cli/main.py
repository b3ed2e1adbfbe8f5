"""Runs a subcommand, prints one message about an error and returns the exit code."""

from __future__ import annotations

import atexit
import difflib
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

from stormproof.distributed.rank import global_rank, is_started_by_rank_zero
from stormproof.errors import PreemptedExit
from stormproof.signals.listener import TERMINATION_SIGNALS
from stormproof.standard_output import discard_unwritten_errors, pipe_is_broken, print_error, print_text
from stormproof_train.cli.collection_pause import paused_collection
from stormproof_train.cli.registry import DEFAULT, SUBCOMMANDS
from stormproof_train.config.overrides import describe_overridden
from stormproof_train.config.settings import check_urls
from stormproof_train.errors import ExitCode, PreemptedError, RunError, UserError
from stormproof_train.install_command import install_command
from stormproof_train.run import torchrun_agent


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments after the command name. Default: ``sys.argv[1:]``.

    Returns:
        Exit code, as listed in docs/reference/exit_codes.md.
    """
    _make_streams_robust()
    args = list(sys.argv[1:] if argv is None else argv)
    torchrun_agent.terminate_with_agent()
    if is_started_by_rank_zero():
        # Ctrl-C reaches every process of a terminal. Rank 0 records why the run ended and stops the other ranks. If
        # another rank exited first, Lightning would kill rank 0 before it could do so.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # rank 0 blocks it, see run/shutdown.py
    debug = "debug=true" in (arg.lower() for arg in args)
    try:
        code = _dispatch(args)
        return ExitCode.BROKEN_PIPE if pipe_is_broken() else code
    except BrokenPipeError:  # the reader of the output, as in `… | head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except PreemptedExit:  # another rank
        _ignore_signals()
        raise
    except RunError as error:
        if isinstance(error, PreemptedError):
            _ignore_signals()
        if debug:
            traceback.print_exc()
        return _print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _print_error("stopped by Ctrl-C", ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (the last handler: every error is reported)
        return _exit_with_error(error, debug)


def _make_streams_robust() -> None:
    """Replaces missing streams by the null device and escapes characters that an encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (until Python exits)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    atexit.register(discard_unwritten_errors)


def _dispatch(argv: list[str]) -> int:
    name, argv = _split_command(argv)
    subcommand = SUBCOMMANDS[name]
    check_urls(argv)
    if subcommand.takes_settings:
        _warn_about_repeated_arguments(argv)
    if "--version" in argv:
        print(version("stormproof"))
        return ExitCode.FINISHED
    packages = dict(subcommand.packages)
    if "train" in packages:
        _require(name, "train", packages.pop("train"))
        _require_hydra_for_this_python()
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # for user modules, as in `python -m`
    if name != DEFAULT:
        argv = [arg for arg in argv if not arg.lower().startswith("debug=")]  # `main` handles it
    if {"--help", "-h"} & set(argv):
        import_module(subcommand.help_module or subcommand.module).print_help(argv)
        return ExitCode.FINISHED
    for extra, names in packages.items():
        _require(name, extra, names)
    with paused_collection():
        module = import_module(subcommand.module)
    return module.run(argv)


def _warn_about_repeated_arguments(argv: Sequence[str]) -> None:
    if not global_rank():
        for warning in describe_overridden(argv):
            print_text(f"warning: {warning}\n")


def _split_command(argv: list[str]) -> tuple[str, list[str]]:
    """Returns the subcommand and its arguments."""
    if not argv or argv[0].startswith(("-", "~")) or "=" in argv[0]:
        return DEFAULT, argv
    if argv[0] not in SUBCOMMANDS:
        similar = difflib.get_close_matches(argv[0], SUBCOMMANDS, n=1)
        hint = f" Did you mean {similar[0]}?" if similar else ""
        raise UserError(f"unknown command {argv[0]}.{hint} Commands: {', '.join(SUBCOMMANDS)}")
    return argv[0], argv[1:]


def _ignore_signals() -> None:
    """Ignores further signals, so that the exit code is kept while Python shuts down for about a second."""
    for signum in TERMINATION_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _require(name: str, extra: str, packages: Sequence[str]) -> None:
    for package in packages:
        if find_spec(package) is None:
            purpose = "training" if extra == "train" else name
            raise UserError(f"{purpose} needs {package}, which is not installed. Run: {install_command(extra)}")


def _require_hydra_for_this_python() -> None:
    hydra = version("hydra-core")
    if sys.version_info >= (3, 14) and hydra.startswith("1.3."):
        raise UserError(f"Hydra {hydra} does not support Python 3.14. Run: pip install 'hydra-core>=1.4.0rc3,<1.5'")


def _exit_with_error(error: Exception, debug: bool) -> ExitCode:
    from stormproof_train.error_messages import describe_error, is_killed_worker  # noqa: PLC0415 (they need Hydra)

    message, code = describe_error(error)
    if debug or code is ExitCode.FAILED:
        traceback.print_exception(error)
    _print_error(message, code)
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


def _print_error(message: str, code: ExitCode) -> ExitCode:
    rank = global_rank()
    print_text("")
    print_error(f"stormproof{f' (rank {rank})' if rank else ''}: {message}\n")
    if code in {ExitCode.DIVERGED, ExitCode.CRASH_LOOP} and not rank:
        torchrun_agent.terminate_agent()
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Factories of the loggers."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger

from stormproof import CheckpointRecovery
from stormproof.distributed.rank import is_rank_zero
from stormproof.signals.listener import signals_blocked_in_children
from stormproof_train.console import print_line
from stormproof_train.errors import UserError
from stormproof_train.install_command import install_command
from stormproof_train.run.git_state import read_git_state

Mode = Literal["online", "offline", "disabled", "shared"]
CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""W&B's own server, as older and as newer clients call it."""
INIT_TIMEOUT_SECONDS = 20.0
"""How long W&B may take to answer before the run goes on without it."""
FINISH_TIMEOUT_SECONDS = 300.0
"""How long a run that has ended waits for W&B to take the rest."""


def none(folder: Path) -> None:
    """No logger."""


def tensorboard_logger(folder: Path, resume_step: int = 0) -> Logger:
    """TensorBoard event files in ``<folder>/tensorboard``.

    Args:
        folder: the run folder.
        resume_step: the step that training goes on from; what earlier attempts logged from there on is not shown.

    Raises:
        UserError: if TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(f"logger=tensorboard needs TensorBoard: {install_command('tensorboard')}")
    from pytorch_lightning.loggers import TensorBoardLogger  # noqa: PLC0415

    return TensorBoardLogger(save_dir=folder, name="", version="tensorboard", purge_step=resume_step or None)


def wandb_logger(
    folder: Path,
    settings: Mapping[str, Any],
    name: str,
    run_id: str | None = None,
    resume_step: int = 0,
    project: str = "stormproof",
    entity: str | None = None,
    group: str | None = None,
    job_type: str = "train",
    tags: Sequence[str] = (),
    mode: Literal["auto", "online", "offline"] = "auto",
    checkpoints: int = 0,
) -> Logger:
    """A Weights & Biases run, its files in ``<folder>/wandb``.

    W&B is not told the words of the command, the environment, the repository's address or what is not committed in it,
    which may hold secrets: the run's config says what was run, of which commit, and whether that had been changed.

    Args:
        folder: the run folder.
        settings: every effective argument; becomes the run's config.
        name: the run's name on the dashboard.
        run_id: of the W&B run; None for a new one. A run that is there goes on.
        resume_step: the step that training goes on from.
        project: the W&B project.
        entity: the W&B team or user; None for the account's default.
        group: joins runs on the dashboard.
        job_type: what kind of run it is, within a group.
        tags: labels of the run.
        mode: ``online`` uploads, ``offline`` keeps the run in the folder; ``auto`` is what ``WANDB_MODE`` says, else
            online where there is an API key and the server answers, else offline. Nothing is ever asked.
        checkpoints: how many of the run's checkpoints to keep there: the best, or the newest where no metric decides;
            at most those that the run itself keeps. They are uploaded when it has finished.

    Raises:
        UserError: if it is to be online and there is no API key, or, unless ``mode`` is auto, no answer; or if
            ``checkpoints`` is below 0.
    """
    if checkpoints < 0:
        raise UserError(f"logger.checkpoints={checkpoints}: it counts checkpoints, from 0")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # which has no setting, and is read when wandb is imported
    import wandb  # noqa: PLC0415 (half a second; only this logger needs it)

    from stormproof_train.loggers.wandb_history import WandbHistory, last_offline_step  # noqa: PLC0415 (they need wandb)

    resolved_mode = _resolve_mode(mode)
    if not is_rank_zero():
        return WandbHistory(None)  # Lightning lets it speak on rank 0 alone
    offline_step = -1 if run_id is None else last_offline_step(folder, run_id)
    state = read_git_state()
    git_config = {} if state is None else {"git": asdict(state)}

    def start(mode: Any) -> wandb.Run:
        with signals_blocked_in_children():
            wandb.setup(wandb.Settings(silent=True))  # starts its service, which ends when this process does
        return wandb.init(
            id=run_id,
            resume=None if run_id is None else "allow",
            name=name,
            dir=folder,
            project=project,
            entity=entity,
            group=group,
            job_type=job_type,
            tags=list(tags),
            mode=mode,
            config={**settings, **git_config},
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_TIMEOUT_SECONDS,
                finish_timeout=FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=True,
                git_commit=state and state.commit,
                # not the words of the command, nor the repository's address and what is not committed in it
                x_disable_meta=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
            ),
        )

    reason = "" if has_api_key() else " (no API key)"
    try:
        run = start(resolved_mode)
    except wandb.Error as error:
        if resolved_mode != "online":
            raise
        if mode != "auto":
            raise UserError(f"logger.mode={mode}: {error}; logger.mode=offline trains without the server") from error
        reason, resolved_mode = " (the server does not answer, or refuses the key)", "offline"
        wandb.teardown()  # its service still holds the run that could not start, by the same id
        run = start(resolved_mode)
    if resolved_mode == "offline":
        files = Path(run.dir).parent
        print_line(
            f"W&B: offline{reason}; to upload the run: wandb sync {_sync_target(folder, files)}; to look at it: "
            f"wandb leet run {files}"
        )
    elif run.url:
        print_line(f"W&B: {run.url}")
    logger = WandbHistory(run, offline_step if resolved_mode == "offline" else run.starting_step - 1, checkpoints)
    logger.send_missing_rows(folder / "metrics.csv", resume_step)
    return logger


def _sync_target(folder: Path, latest: Path) -> str:
    """What to give to ``wandb sync``: each attempt leaves a folder, and all of them are one run."""
    has_earlier = len(list(folder.glob("wandb/offline-run-*"))) > 1
    return f"{latest.parent}/offline-run-*" if has_earlier else str(latest)


def _resolve_mode(mode: str) -> str:
    resolved_mode = mode
    if mode == "auto":
        resolved_mode = os.environ.get("WANDB_MODE", "online" if has_api_key() else "offline")
    if resolved_mode not in get_args(Mode):
        raise UserError(f"WANDB_MODE={resolved_mode} should be one of {', '.join(get_args(Mode))}")
    if resolved_mode == "online" and not has_api_key():
        raise UserError(
            "logger: W&B is to be online (logger.mode or WANDB_MODE says so) and has no API key: set WANDB_API_KEY, "
            "run wandb login, or set logger.mode=offline"
        )
    return resolved_mode


def close_loggers(
    loggers: Sequence[Logger],
    failed: bool,
    recovery: CheckpointRecovery | None = None,
    folder: Path | None = None,
) -> None:
    """Ends the W&B run, if there is one, as failed or not: in one process, the next run is another one.

    Args:
        loggers: of the run.
        failed: whether the run has.
        recovery: has the run's checkpoints, of which W&B may be to keep some; None for none.
        folder: of the run, where it holds what the test has shown.
    """
    if "wandb" not in sys.modules:
        return
    import wandb  # noqa: PLC0415 (it is there already)

    from stormproof_train.loggers.wandb_history import (  # noqa: PLC0415 (it needs wandb)
        WandbHistory,
        tolerate_service_failure,
    )

    for logger in loggers:
        if isinstance(logger, WandbHistory):
            logger.upload_results(recovery, folder)
    if wandb.run is not None:
        files = Path(wandb.run.dir).parent
        try:
            with tolerate_service_failure():
                wandb.finish(exit_code=int(failed))
        except TimeoutError:
            print_line(
                f"warning: W&B has not taken all of the run in {FINISH_TIMEOUT_SECONDS:.0f} s; to upload it: wandb "
                f"sync {files}"
            )


def has_api_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether W&B would find an API key without asking: in the environment, or in the netrc file for its host."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    base_url = environ.get("WANDB_BASE_URL")
    hosts = (urlparse(base_url).netloc,) if base_url else CLOUD_HOSTS
    file = Path(environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return any(host in netrc.netrc(file).hosts for host in hosts)
    except (OSError, netrc.NetrcParseError):
        return False

"""Factories of loggers."""

from __future__ import annotations

import netrc
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

Mode = Literal["online", "offline", "disabled", "shared"]
CLOUD_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Hosts of the W&B cloud in older and newer clients."""
INIT_TIMEOUT_SECONDS = 20.0
"""Maximum time that W&B may take to respond before the run continues offline."""
FINISH_TIMEOUT_SECONDS = 300.0
"""Maximum time that a finished run waits for the upload to W&B."""


def none(folder: Path) -> None:
    """Selects no logger."""


def tensorboard_logger(folder: Path, resume_step: int = 0) -> Logger:
    """Returns a logger for TensorBoard event files in ``<folder>/tensorboard``.

    Args:
        folder: Folder of the run.
        resume_step: Step from which training resumes. TensorBoard hides what earlier attempts logged after it.

    Raises:
        UserError: If TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(f"logger=tensorboard needs TensorBoard. Run: {install_command('tensorboard')}")
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
    """Returns a logger for a Weights & Biases run with its files in ``<folder>/wandb``.

    The command line, the environment, the address of the repository and uncommitted changes are not sent to W&B,
    because they may contain secrets. The config of the W&B run contains the settings, the commit, and whether it was
    modified.

    Args:
        folder: Folder of the run.
        settings: All effective arguments. They become the config of the W&B run.
        name: Name of the run on the dashboard.
        run_id: ID of the W&B run. An existing run is resumed. None for a new run.
        resume_step: Step from which training resumes.
        project: W&B project.
        entity: W&B team or user. None for the account's default.
        group: Group of runs on the dashboard.
        job_type: Kind of the run within a group.
        tags: Tags of the run.
        mode: ``online`` uploads the run, ``offline`` saves it in the folder. ``auto`` uses ``WANDB_MODE`` if set, else
            online if there is an API key and the server responds, else offline. There are no prompts.
        checkpoints: Maximum number of checkpoints to upload when the run has finished: the best, or the newest without
            a monitored metric. Only checkpoints that the run keeps are uploaded. Must be at least 0.

    Raises:
        UserError: If the mode is online and there is no API key, the mode is set and the server does not respond, or
            ``checkpoints`` is below 0.
    """
    if checkpoints < 0:
        raise UserError(f"logger.checkpoints must be at least 0, got {checkpoints}")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported, and not a setting
    import wandb  # noqa: PLC0415 (takes half a second, and only this logger needs it)

    from stormproof_train.loggers.wandb_history import WandbHistory, last_offline_step  # noqa: PLC0415 (they need wandb)

    resolved_mode = _resolve_mode(mode)
    if not is_rank_zero():
        return WandbHistory(None)  # Lightning logs on rank 0 only
    offline_step = -1 if run_id is None else last_offline_step(folder, run_id)
    state = read_git_state()
    git_config = {} if state is None else {"git": asdict(state)}

    def start(mode: Any) -> wandb.Run:
        with signals_blocked_in_children():
            wandb.setup(wandb.Settings(silent=True))  # starts its service, which ends with this process
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
                # excludes the command line, the address of the repository and uncommitted changes
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
            raise UserError(f"logger.mode={mode}: {error}. Set logger.mode=offline to train offline.") from error
        reason, resolved_mode = " (the server does not respond, or rejects the key)", "offline"
        wandb.teardown()  # the service still has the failed run under the same ID
        run = start(resolved_mode)
    if resolved_mode == "offline":
        files = Path(run.dir).parent
        print_line(
            f"W&B: offline{reason}; to upload the run: wandb sync {_sync_target(folder, files)}; to view it: "
            f"wandb leet run {files}"
        )
    elif run.url:
        print_line(f"W&B: {run.url}")
    logger = WandbHistory(run, offline_step if resolved_mode == "offline" else run.starting_step - 1, checkpoints)
    logger.send_missing_rows(folder / "metrics.csv", resume_step)
    return logger


def _sync_target(folder: Path, latest: Path) -> str:
    """Returns the argument for ``wandb sync``. Each attempt creates a folder, and all of them belong to one run."""
    has_earlier = len(list(folder.glob("wandb/offline-run-*"))) > 1
    return f"{latest.parent}/offline-run-*" if has_earlier else str(latest)


def _resolve_mode(mode: str) -> str:
    resolved_mode = mode
    if mode == "auto":
        resolved_mode = os.environ.get("WANDB_MODE", "online" if has_api_key() else "offline")
    if resolved_mode not in get_args(Mode):
        raise UserError(f"WANDB_MODE must be one of {', '.join(get_args(Mode))}, got {resolved_mode}")
    if resolved_mode == "online" and not has_api_key():
        raise UserError(
            "logger: W&B has no API key, but logger.mode or WANDB_MODE is online. Set WANDB_API_KEY, run wandb login, "
            "or set logger.mode=offline."
        )
    return resolved_mode


def close_loggers(
    loggers: Sequence[Logger],
    failed: bool,
    recovery: CheckpointRecovery | None = None,
    folder: Path | None = None,
) -> None:
    """Finishes the W&B run, if there is one, so that the next run in this process is a new one.

    Args:
        loggers: Loggers of the run.
        failed: True if the run has failed.
        recovery: Callback with the run's checkpoints, to upload some of them. None for no upload.
        folder: Folder of the run, if it contains test results.
    """
    if "wandb" not in sys.modules:
        return
    import wandb  # noqa: PLC0415 (already imported)

    from stormproof_train.loggers.wandb_history import (  # noqa: PLC0415 (imports wandb)
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
                f"warning: W&B did not receive the whole run in {FINISH_TIMEOUT_SECONDS:.0f} s; to upload it: wandb "
                f"sync {files}"
            )


def has_api_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns True if W&B finds an API key without a prompt: in the environment, or in the netrc file for its host."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    base_url = environ.get("WANDB_BASE_URL")
    hosts = (urlparse(base_url).netloc,) if base_url else CLOUD_HOSTS
    file = Path(environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return any(host in netrc.netrc(file).hosts for host in hosts)
    except (OSError, netrc.NetrcParseError):
        return False


TIMEOUT_SECONDS = 10.0
"""Maximum duration of the git command, which can be slow on a network file system."""
_DIRTY_SUFFIX = "-dirty"


@dataclass(frozen=True)
class GitState:
    """A commit, and True if tracked files have uncommitted changes."""

    commit: str
    dirty: bool


def read_git_state() -> GitState | None:
    """Returns the state of the repository of the working directory, or None without a repository, a commit, or git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={_DIRTY_SUFFIX}"]
    try:
        description = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return GitState(description.removesuffix(_DIRTY_SUFFIX), description.endswith(_DIRTY_SUFFIX))

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from stormproof.errors import FolderLostError, FolderTakenError, NoGoodCheckpointError, RanksDisagreeError
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.error_messages import describe_error
from stormproof_train.errors import ExitCode, StopError, StorageError, UserError


def _caught(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as excinfo:  # noqa: PT011 (the sentence is what is tested)
        action()
    return excinfo.value


def _because(cause: Exception) -> Exception:
    def chained() -> None:
        raise RuntimeError("outer") from cause

    return _caught(chained)


def _while_handling(earlier: Exception) -> Exception:
    def chained() -> None:
        try:
            raise earlier
        except type(earlier):
            raise RuntimeError("outer")  # noqa: B904 (the implicit chain is the point)

    return _caught(chained)


FULL = OSError(errno.ENOSPC, "No space left on device", "runs/a/last.ckpt")
WORKER = (
    "a data loader worker was killed, possibly because memory ran out ({}); the same command resumes the run. If this "
    "happens again, lower data.num_workers."
)
ERRORS = {
    "ours": (UserError("what is wrong"), "what is wrong", 2),
    "ours of the disk": (StorageError("the lease is gone"), "the lease is gone", 74),
    "a folder that is taken": (FolderTakenError("it is in use"), "it is in use", 2),
    "a folder that was lost": (FolderLostError("it is another's"), "it is another's", 74),
    "ranks that disagree": (RanksDisagreeError("start it again"), "start it again", 75),
    "no memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        (
            "memory ran out (DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.). Lower the "
            "size of the model (model.…) or data.batch_size, or use a larger machine."
        ),
        2,
    ),
    "no good checkpoint": (
        NoGoodCheckpointError("runs/a has no good checkpoint (000001-step-10: lost)"),
        (
            "runs/a has no good checkpoint (000001-step-10: lost). "
            "Restore a copy, or start a new run with another name (name=…)."
        ),
        74,
    ),
    "a stop": (StopError("stopped at step 3", ExitCode.TERMINATED), "stopped at step 3", 143),
    "a full disk": (FULL, "the disk is full (runs/a/last.ckpt): free some space or set runs_dir elsewhere", 74),
    "a full disk behind torch's error": (
        _because(FULL),
        "the disk is full (runs/a/last.ckpt): free some space or set runs_dir elsewhere",
        74,
    ),
    "a full disk before another error": (
        _while_handling(FULL),
        "the disk is full (runs/a/last.ckpt): free some space or set runs_dir elsewhere",
        74,
    ),
    "a quota": (OSError(errno.EDQUOT, "x"), "the disk quota is used up: free some space or set runs_dir elsewhere", 74),
    "a missing file": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x.csv"),
        "ended by FileNotFoundError: [Errno 2] No such file or directory: 'x.csv'",
        1,
    ),
    "Lightning's word for a mistake": (
        MisconfigurationException("No GPU.\n  More of it."),
        "trainer: No GPU.",
        2,
    ),
    "stopping by what is misspelt": (
        RuntimeError("Early stopping conditioned on metric `val/los` which is not available. There is: `val/loss`"),
        "callbacks: Early stopping conditioned on metric `val/los` which is not available. There is: `val/loss`",
        2,
    ),
    "stopping by what no validation has logged": (
        RuntimeError("Early stopping conditioned on metric `val/loss` which is not available. There is: `train/loss`"),
        (
            "Early stopping monitors val/loss, but the run ends before its first validation. Train for at least one "
            "epoch (trainer.max_steps, trainer.max_epochs), or validate earlier (trainer.val_check_interval)."
        ),
        2,
    ),
    "a label that is no class": (
        IndexError("Target 3 is out of bounds."),
        (
            "data: a batch has an invalid class label (Target 3 is out of bounds.). Labels must be from 0 to "
            "num_classes - 1."
        ),
        2,
    ),
    "a loader worker that was killed": (
        RuntimeError("DataLoader worker (pid 42) is killed by signal: Killed. "),
        WORKER.format("DataLoader worker (pid 42) is killed by signal: Killed."),
        75,
    ),
    "a loader worker that ended": (
        RuntimeError("DataLoader worker (pid(s) 42) exited unexpectedly"),
        WORKER.format("DataLoader worker (pid(s) 42) exited unexpectedly"),
        75,
    ),
    "several lines": (RuntimeError("\n\n  shapes differ  \nat line 3"), "ended by RuntimeError: shapes differ", 1),
    "no words at all": (AssertionError(), "ended by AssertionError: no message", 1),
}


@pytest.mark.parametrize(("error", "sentence", "code"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_is_one_sentence_and_a_code(error: Exception, sentence: str, code: int):
    assert describe_error(error) == (sentence, code)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE])
def test_what_only_the_disk_can_say_has_the_code_of_storage(number: int):
    assert describe_error(OSError(number, "x"))[1] is ExitCode.STORAGE


CONFIGS = {
    "an unknown choice": (["activation=elo"], "activation=elo does not exist. Choices: elu, celu, "),
    "an unknown group": (["optimzer=adam"], "unknown setting or group optimzer. Did you mean optimizer?"),
    "an unknown setting": (["sed=1"], "unknown setting or group sed. Did you mean seed?"),
    "an unknown experiment": (
        ["experiment=fashion"],
        "experiment=fashion does not exist. Choices: fashion_mnist_cnn, ",
    ),
    "an unknown experiment of a folder": (
        ["experiment=broken/vanishing"],
        "experiment=broken/vanishing does not exist. Choices: broken/vanishing_sigmoid, broken/nan_input, ",
    ),
    "a folder of experiments": (
        ["experiment=broken"],
        "experiment=broken does not exist. Choices: broken/overfit, broken/",
    ),
    "an unknown choice of Hydra's": (["hydra/job_logging=no"], "hydra/job_logging=no does not exist. Choices: none, "),
    "several values without a sweep": (["seed=1,2"], "seed=1,2 has several values, but a run needs one. Add -m "),
    "a sign of Hydra's": (
        ["++data.separator=;"],
        "'data.separator=;' cannot be read as group=choice or group.argument=value. Put values w",
    ),
    "a letter that Hydra does not know": (
        ["++data.target=ý"],
        "'data.target=ý' cannot be read as group=choice or group",
    ),
    "a bracket left open": (["seed=[1"], "'seed=[1' cannot be read as group=choice or group.argument=value: "),
}


@pytest.mark.parametrize(("words", "beginning"), CONFIGS.values(), ids=CONFIGS.keys())
def test_what_hydra_refuses_is_the_users_mistake(words: list[str], beginning: str):
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        error = _caught(lambda: hydra.compose("config", words))
    sentence, code = describe_error(error)
    assert sentence.startswith(beginning)
    assert "\n" not in sentence
    assert code is ExitCode.USER_MISTAKE


def test_a_launcher_that_is_not_installed_is_told_with_its_extra():
    error = MissingConfigException("", "hydra/launcher/submitit_slurm", ["basic"])
    message = "hydra/launcher=submitit_slurm is not installed: pip install -e '.[slurm]'"
    assert describe_error(error) == (message, ExitCode.USER_MISTAKE)


def test_ranks_that_slurm_has_not_started_are_the_users_mistake(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"NTASKS": "2", "NTASKS_PER_NODE": "2", "JOB_NAME": "train", "NNODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    error = _caught(lambda: SLURMEnvironment().validate_settings(num_devices=1, num_nodes=1))
    sentence, code = describe_error(error)
    assert sentence.startswith("trainer: You set `devices=1` in Lightning, but the number of tasks per node")
    assert code is ExitCode.USER_MISTAKE


def test_a_slip_in_a_yaml_is_told_with_its_file_and_line(tmp_path: Path):
    file = tmp_path / "broken.yaml"
    file.write_text("# An activation.\n_target_: torch.nn.ELU: 3\n")
    sentence, code = describe_error(_caught(lambda: OmegaConf.load(file)))
    assert sentence.startswith(f"{file}, line 2 cannot be read as YAML: mapping values are not allowed ")
    assert code is ExitCode.USER_MISTAKE


def test_what_is_to_be_quoted_is_shown_in_its_quotes():
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        error = _caught(lambda: hydra.compose("config", ["++data.separator=;"]))
    assert describe_error(error)[0].endswith(""": "data.separator=';'\"""")


def test_a_connection_that_breaks_while_a_worker_sends_a_batch_is_a_killed_worker():
    def fail(**_: float) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    iterator: Any = iter(DataLoader(range(4), num_workers=1))  # pyright: ignore[reportArgumentType]
    iterator._data_queue.get = fail
    sentence, code = describe_error(_caught(lambda: next(iterator)))
    iterator._shutdown_workers()  # else garbage collection waits 5 s for the worker, in any later test
    assert sentence == WORKER.format("[Errno 104] Connection reset by peer")
    assert code is ExitCode.START_AGAIN
    assert describe_error(_caught(fail))[1] is ExitCode.FAILED


def test_an_interpolation_of_nothing_is_the_users_mistake():
    config = OmegaConf.create({"name": "${no_such_key}"})
    sentence, code = describe_error(_caught(lambda: OmegaConf.to_container(config, resolve=True)))
    assert "no_such_key" in sentence
    assert "\n" not in sentence
    assert code is ExitCode.USER_MISTAKE

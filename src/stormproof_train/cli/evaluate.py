"""``evaluate``: what a run's weights are worth on a split of its data or of others, and whether others are better."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl

from stormproof.checkpoint import atomic_write
from stormproof.distributed.gloo_shutdown import part_before_exit
from stormproof.distributed.rank import is_rank_zero
from stormproof_train.broken_links import reason
from stormproof_train.build_task import build_task
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.plan import FINGERPRINT, Plan
from stormproof_train.config.redaction import without_secret, without_secrets
from stormproof_train.console import print_table, say, shown
from stormproof_train.data.content_sketch import refuse_other_files
from stormproof_train.data.spec import fingerprint_of, spec_of
from stormproof_train.data.split_data import SplitData, SplitName
from stormproof_train.errors import ExitCode, UserError, first_line, nearest
from stormproof_train.evaluation.comparison import compare
from stormproof_train.evaluation.keeping import keep
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.lightning_output import quiet_lightning
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.trained_weights import Trained, find, plan_of
from stormproof_train.task import Task

USAGE = """Evaluates the weights of a run, and keeps everything in runs/<name>/evaluations/.

  stormproof-train evaluate checkpoint=runs/<name>                  what the run came to, or its newest checkpoint
  stormproof-train evaluate checkpoint=runs/<name>/checkpoints/….ckpt split=validation
  stormproof-train evaluate checkpoint=runs/<name> data.test_path=new.csv
  stormproof-train evaluate checkpoint=runs/<name> against=runs/<other>     and whether one is better

  checkpoint=   a run's folder, or a checkpoint of a run  (has to be given)
  against=      another, on the same samples
  split=test    or validation, or train: without augmentation, in order
  output=       the folder for predictions.npz and evaluation.json
  data…=        other data than the run's, or other arguments of these
  trainer…=     such as trainer=gpu; one device by default"""

WITHOUT_EFFECT = {"batch_size", "num_workers", "drop_last"}
"""Of the data's arguments: on what samples there are."""

_OWN = ("checkpoint", "against", "split", "output")


@dataclass(frozen=True)
class _Asked:
    checkpoint: Path
    against: Path | None
    split: SplitName
    output: Path | None
    words: Sequence[str]


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the command ``evaluate``."""
    print(USAGE)


def run(words: Sequence[str]) -> int:
    """Evaluates as the words say, and prints and keeps what came of it.

    Args:
        words: ``checkpoint=…`` and more, as :data:`USAGE` lists them.

    Returns:
        The exit code.

    Raises:
        UserError: if they do not fit, or there is nothing to evaluate.
    """
    asked = _read(words)
    quiet_lightning()
    first = find(asked.checkpoint)
    second = None if asked.against is None else find(asked.against)
    folder = asked.output or first.run / "evaluations" / _name(first, second, asked)
    _make(folder if second is None else folder / "against")
    _evaluate(first, asked, conf_dir(), folder)
    if second is None:
        return ExitCode.FINISHED
    _evaluate(second, asked, conf_dir(), folder / "against")
    if is_rank_zero():
        one, other = (Predictions.load(each / "predictions.npz") for each in (folder, folder / "against"))
        of = {"first": str(first.checkpoint), "second": str(second.checkpoint)}
        found = {**of, **compare(one, other)}
        with atomic_write(folder / "comparison.json") as file:
            file.write(f"{json.dumps(found, allow_nan=False)}\n".encode())
        _print_comparison(found, first, second)
    return ExitCode.FINISHED


def _read(words: Sequence[str]) -> _Asked:
    own: dict[str, str] = {}
    others = []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"{word} says nothing to evaluate: write {'=…, '.join(_OWN)}=…, data…=… or trainer…=…")
        if key in _OWN:
            own[key] = value
        elif "." in key or key in {"data", "trainer"}:
            others.append(word)
        else:
            close = nearest(key, [*_OWN, "data", "trainer"])[:1]
            hint = f"did you mean {close[0]}?" if close else f"there is: {', '.join(_OWN)}, data, trainer"
            raise UserError(f"{key}= is nothing that an evaluation takes; {hint}")
    if not own.get("checkpoint"):
        raise UserError("evaluate needs checkpoint=…: a run's folder, or a checkpoint of a run")
    split: Any = own.get("split", "test")
    if split not in get_args(SplitName):
        raise UserError(f"split={split} should be one of {', '.join(get_args(SplitName))}")
    against, output = (Path(own[key]) if own.get(key) else None for key in ("against", "output"))
    return _Asked(Path(own["checkpoint"]), against, split, output, others)


def _evaluate(trained: Trained, asked: _Asked, conf: Path, folder: Path) -> None:
    """Tests, keeps predictions and evaluation in the folder, and prints what it found."""
    plan = plan_of(trained.run, conf, asked.words)
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    _refuse_changed(data, plan, trained.run)
    if isinstance(data, SplitData):
        data.tested = asked.split
    elif asked.split != "test":
        raise UserError(f"split={asked.split}: {plan.data.path} tells only its test samples in order")
    spec = spec_of(data)
    task = build_task(plan, data, spec, plan.loss_for(spec.task))
    say(f"{trained.checkpoint} on the {asked.split} split of {plan.data.function.__name__}")
    metrics = _tested(plan, task, data, trained.checkpoint)
    if not is_rank_zero():
        return
    data_told = without_secrets(plan.data.arguments())
    of = {"checkpoint": str(trained.checkpoint), "split": asked.split, "data": data_told}
    of |= {"class_names": task.classes} if task.classes else {}
    evaluation = keep(task.tested, folder, of)
    if evaluation is None:
        raise UserError(f"{trained.checkpoint} could not be evaluated; its metrics: {metrics}")
    _print(trained.run.name, {"loss": {"value": metrics["loss"]}, **evaluation["headline"]})
    say(f"predictions and evaluation: {folder}")


def _make(folder: Path) -> None:
    """Before hours are spent; all ranks do, and say what is wrong."""
    if (folder / "run.json").exists() or (folder / "config.yaml").exists():
        raise UserError(f"output={folder} is a run's own folder: give another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={folder}: the folder cannot be made: {reason(folder, error)}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output={folder}: nothing can be written there: give another one")


def _tested(plan: Plan, task: Task, data: pl.LightningDataModule, checkpoint: Path) -> dict[str, float]:
    part_before_exit()
    trainer: pl.Trainer = plan.trainer.build(logger=False, callbacks=[], enable_checkpointing=False)
    if getattr(trainer, "limit_test_batches", 1) == 0:
        raise UserError("trainer.limit_test_batches=0 leaves nothing to evaluate: set it above 0, or leave it out")
    try:
        (found,) = trainer.test(task, datamodule=data, ckpt_path=str(checkpoint), weights_only=True, verbose=False)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's way to end by Ctrl-C
            raise KeyboardInterrupt from error
        raise
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        reason = first_line(error).partition(":\n")[0]
        raise UserError(f"{checkpoint} does not fit the network that these data ask for ({reason})") from error
    return {name.partition("/")[2]: float(value) for name, value in found.items()}


def _refuse_changed(data: pl.LightningDataModule, plan: Plan, run: Path) -> None:
    """The split of files that have changed is another one, so that what was trained on may be tested."""
    trained_on = RunFolder(run.parent, run.name).settings()["data"]
    before = trained_on.pop(FINGERPRINT, None)
    now = without_secrets(plan.data.arguments())
    named = {key for key in now.keys() | trained_on.keys() if now.get(key) != trained_on.get(key)} - WITHOUT_EFFECT
    if named:
        say(
            "warning: these are not the data as the run was trained on them: their own training split scales the "
            "inputs, and what the run was trained on may be among the samples"
        )
    elif fingerprint_of(data) != before:
        raise UserError(
            f"the data have changed since {run} was trained, so that its training samples may be among those to "
            "evaluate: give them another name (data.path=…, data.test_path=…), or put the old ones back"
        )
    else:
        refuse_other_files(run, data)


def _name(first: Trained, second: Trained | None, asked: _Asked) -> str:
    """The same for the same evaluation."""
    against = [] if second is None else ["against", second.run.name[:80], second.checkpoint.stem]
    told = "\n".join(sorted(map(without_secret, asked.words)))
    others = [hashlib.sha256(told.encode()).hexdigest()[:8]] if told else []
    return "-".join([asked.split, first.checkpoint.stem, *others, *against])


def _print_comparison(found: Mapping[str, Any], first: Trained, second: Trained) -> None:
    say(f"{first.run.name} minus {second.run.name}, on the same {found['samples']:,} samples")
    _print("difference", found["differences"])
    if "mcnemar" in found:
        test = found["mcnemar"]
        say(
            f"right alone: the first {test['first_alone']:,}, the second {test['second_alone']:,} times "
            f"(McNemar's exact test: p = {test['p_value']:.2g})"
        )


def _print(title: str, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """A row a number, with its interval where it has one."""
    rows = [
        (
            name,
            shown(each["value"]),
            "" if each.get("low") is None else f"{shown(each['low'])} to {shown(each['high'])}",
        )
        for name, each in numbers.items()
    ]
    print_table(title, ("metric", "value", "95% interval"), rows)

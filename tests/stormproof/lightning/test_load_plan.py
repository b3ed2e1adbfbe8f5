"""A plan decides what Lightning loads, also if it changes after it was installed."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof.lightning.load_plan import LoadPlan
from tests.support.small_fits import BOTH_PACKAGES, LIGHTNING_WARNING_FILTERS, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class Planner(pl.Callback):
    """Installs a plan in ``setup``, changes it, and records what is loaded."""

    def __init__(self, folder: Path, change: Callable[[LoadPlan], None] = lambda _: None) -> None:
        self.folder, self.change, self.events = folder, change, list[Any]()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        plan = LoadPlan(self.folder, self.load, self.prepare)
        self.undo = plan.install(trainer)
        self.change(plan)

    def load(self, path: Path, weights_only: bool, load_original: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self.events.append(("load", path.name, weights_only))
        return load_original()

    def prepare(self, checkpoint: dict[str, Any], weights_only: bool | None) -> None:
        self.events.append(("prepare", checkpoint["global_step"], weights_only))
        checkpoint["prepared"] = True

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.events.append(("hook", checkpoint["prepared"]))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.undo()


def fit(planner: Planner, lightning: Any = pl, **options: Any) -> Any:
    trainer = make_trainer(lightning, callbacks=[planner], max_epochs=2)
    trainer.fit(make_module(lightning), make_loader(), **options)
    return trainer


def save_two(folder: Path, lightning: Any = pl) -> tuple[Path, Path]:
    """Returns the paths of an older and a newer checkpoint."""
    paths = folder / "older.ckpt", folder / "newer.ckpt"
    for path, max_steps in zip(paths, (2, 4), strict=True):
        trainer = make_trainer(lightning, max_steps=max_steps)
        trainer.fit(make_module(lightning), make_loader())
        trainer.save_checkpoint(path)
    return paths


@BOTH_PACKAGES
def test_lightning_loads_by_the_plan_before_any_hook_until_it_is_undone(lightning: Any, tmp_path: Path):
    older, _ = save_two(tmp_path, lightning)
    planner = Planner(tmp_path)
    trainer = fit(planner, lightning, ckpt_path=older)
    assert planner.events == [("load", "older.ckpt", True), ("prepare", 2, True), ("hook", True)]
    assert "resume_start" not in vars(trainer._checkpoint_connector)
    assert "load_checkpoint" not in vars(trainer.strategy)


@BOTH_PACKAGES
def test_lightning_reads_checkpoints_of_other_folders(lightning: Any, tmp_path: Path):
    older, _ = save_two(tmp_path, lightning)
    planner = Planner(tmp_path / "checkpoints")
    fit(planner, lightning, ckpt_path=older, weights_only=False)
    assert planner.events == [("prepare", 2, False), ("hook", True)]


def test_weights_only_of_the_caller_has_priority(tmp_path: Path):
    older, _ = save_two(tmp_path)
    planner = Planner(tmp_path)
    fit(planner, ckpt_path=older, weights_only=False)
    assert planner.events[:2] == [("load", "older.ckpt", False), ("prepare", 2, False)]


def resume_by_default(plan: LoadPlan, path: Path, weights_only: bool | None = None) -> None:
    plan.default_path, plan.default_weights_only = str(path), weights_only


@BOTH_PACKAGES
@pytest.mark.parametrize(("argument", "loaded"), [(None, True), (False, False)])
def test_the_default_is_loaded_without_ckpt_path(argument: bool | None, loaded: bool, lightning: Any, tmp_path: Path):
    older, _ = save_two(tmp_path, lightning)
    planner = Planner(tmp_path, partial(resume_by_default, path=older, weights_only=argument))
    assert fit(planner, lightning).ckpt_path == str(older)
    assert planner.events[0] == ("load", "older.ckpt", loaded)


def test_ckpt_path_has_priority_over_the_default(tmp_path: Path):
    older, newer = save_two(tmp_path)
    planner = Planner(tmp_path, partial(resume_by_default, path=newer))
    assert fit(planner, ckpt_path=older).ckpt_path == older
    assert planner.events[0] == ("load", "older.ckpt", True)


def test_a_plan_without_a_path_loads_nothing(tmp_path: Path):
    planner = Planner(tmp_path)
    assert fit(planner).ckpt_path is None
    assert planner.events == []


@pytest.mark.parametrize("is_default", [False, True])
def test_a_replacement_is_loaded_instead(is_default: bool, tmp_path: Path):
    older, newer = save_two(tmp_path)

    def change(plan: LoadPlan) -> None:
        if is_default:
            resume_by_default(plan, older)
        plan.replacements[older.resolve()] = str(newer)

    planner = Planner(tmp_path, change)
    trainer = fit(planner, **({} if is_default else {"ckpt_path": tmp_path / "." / older.name}))
    assert planner.events == [("load", "newer.ckpt", True), ("prepare", 4, True), ("hook", True)]
    assert trainer.ckpt_path == str(newer)


def test_a_replacement_leaves_other_checkpoints(tmp_path: Path):
    older, newer = save_two(tmp_path)
    other = Path(shutil.copy(older, tmp_path / "other.ckpt"))
    planner = Planner(tmp_path, lambda plan: plan.replacements.update({older.resolve(): str(newer)}))
    fit(planner, ckpt_path=other)
    assert planner.events[0] == ("load", "other.ckpt", True)
